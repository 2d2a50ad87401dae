"""The checkpoints that are measured: the embedded one, and a random one of the base model's exact shape."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from app.models.loaded import EMBEDDED, default_cache_dir
from sparse_encoder.artifact import MANIFEST, new_directory, read_manifest
from sparse_encoder.packed import unpack

#: Where checkpoints and what is made of them stay for the next run.
CACHE = default_cache_dir() / "benchmarks"
#: Active tokens of a text, on average: what a trained model has. Random weights would have half of the vocabulary.
ACTIVE_TOKENS = 120
MODERNBERT: dict[str, Any] = {
    "vocab_size": 50_000,
    "hidden_size": 768,
    "intermediate_size": 1152,
    "num_hidden_layers": 22,
    "num_attention_heads": 12,
    "max_position_embeddings": 16_384,
    "global_rope_theta": 160_000.0,
    "local_rope_theta": 10_000.0,
    "local_attention": 128,
    "pad_token_id": 49_999,
    "bos_token_id": 2,
    "eos_token_id": 3,
    "cls_token_id": 2,
    "sep_token_id": 3,
}


BERT: dict[str, Any] = {
    "vocab_size": 50_000,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 16,
    "num_attention_heads": 12,
    "max_position_embeddings": 512,
    "pad_token_id": 49_999,
}


def embedded() -> Path:
    """The embedded checkpoint as other software reads it: a directory of transformers."""
    target = CACHE / read_manifest(EMBEDDED).version
    if not target.is_dir():
        with tempfile.TemporaryDirectory() as temporary, new_directory(target) as directory:
            for file in unpack(EMBEDDED, Path(temporary) / "artifact").path.iterdir():
                if file.name != MANIFEST:  # an artifact takes no files beside its own, and the peer writes some
                    shutil.copyfile(file, directory / file.name)
    return target


def modernbert() -> Path:
    """ModernBERT with 149 M random parameters and a vocabulary of 50,000; speed does not depend on what it knows.

    Its tokenizer is the embedded one, filled up with tokens that no text has.
    """
    return _random("modernbert-149m", "ModernBert", MODERNBERT)


def bert() -> Path:
    """BERT with 152 M random parameters, for the peer that cannot convert ModernBERT."""
    return _random("bert-152m", "Bert", BERT)


#: Of XLM-RoBERTa base: most of its 278 M parameters are words.
XLMR: dict[str, Any] = {
    "vocab_size": 250_002,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 514,
    "type_vocab_size": 1,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
}


def xlmr() -> Path:
    """XLM-RoBERTa base with 278 M random parameters and its vocabulary of 250,002, as multilingual models have it."""
    return _random("xlmr-278m", "XLMRoberta", XLMR)


def _random(name: str, kind: str, sizes: Mapping[str, Any]) -> Path:
    target = CACHE / name
    if not target.is_dir():
        with new_directory(target) as directory:
            _write_random(directory, kind, sizes)
    return target


def _write_random(directory: Path, kind: str, sizes: Mapping[str, Any]) -> None:
    import torch
    import transformers

    document = json.loads((EMBEDDED / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = document["model"]["vocab"]
    for token_id in range(len(vocabulary), sizes["vocab_size"]):
        vocabulary[f"\ue000{token_id}"] = token_id  # of the private use area
    pad = next(token for token, token_id in vocabulary.items() if token_id == sizes["pad_token_id"])
    (directory / "tokenizer.json").write_text(json.dumps(document, ensure_ascii=False), encoding="utf-8")
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(directory / "tokenizer.json"),
        pad_token=pad,
        cls_token="[CLS]",
        sep_token="[SEP]",
        unk_token="[UNK]",
        mask_token="[MASK]",
        model_max_length=512,
    )
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**sizes)
    model: Any = getattr(transformers, f"{kind}ForMaskedLM")(config).eval()
    with torch.inference_mode():
        random_ids = torch.randint(100, 20_000, (8, 64))
        strongest = model(random_ids).logits.amax(1).flatten()
        decoder = model.get_output_embeddings()
        decoder.bias -= torch.quantile(strongest, 1 - ACTIVE_TOKENS / sizes["vocab_size"])
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


MODELS = {"embedded": embedded, "modernbert": modernbert, "bert": bert, "xlmr": xlmr}
