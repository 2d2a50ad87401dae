"""One encoder in a process of its own: answers lines `{"texts": [...], "batch_size": n, "most": m}` with seconds.

    python worker.py KIND DIRECTORY [DEVICE]

`most`: tokens of a text. KIND: `ours` or `ours:PRECISION`; `transformers` or `transformers-bf16`, by its own forward
pass; of sentence-transformers `torch`, `torch-bf16`, `openvino`, `openvino-int8`, which run in an environment of their
own (see `benchmarks.peer`), where nothing of this project can be imported. On a DEVICE other than cpu, such as cuda,
all are of this environment, and ours is the encoder for GPUs.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Encode = Callable[[list[str], int, int], object]


def ours(directory: Path, precision: Any, device: str) -> Encode:
    from app.encoders.base import TokenBatch
    from app.encoders.openvino_encoder import OpenVINOEncoder
    from app.encoders.select import build_encoder
    from app.models.conversion import open_model
    from app.models.loaded import EMBEDDED, default_cache_dir
    from sparse_encoder.checkpoint.source import Choices
    from sparse_encoder.tokenizer import Tokenizer

    cache = default_cache_dir() / "benchmarks"
    model = None if directory == EMBEDDED else str(directory)
    artifact = open_model(model, cache, Choices(), lambda artifact: OpenVINOEncoder(artifact, "f32"))
    tokenizer = Tokenizer.from_file(artifact.path / "tokenizer.json")
    encoder = build_encoder(artifact, device, precision, 0, cache)
    encoder.specialise()

    def encode(texts: list[str], batch_size: int, most: int) -> object:
        vectors = []
        for start in range(0, len(texts), batch_size):
            part = tokenizer.encode_batch(texts[start : start + batch_size], most)
            vectors += encoder.encode(TokenBatch.pad([text.ids for text in part], tokenizer.pad_id))
        return vectors

    return encode


def plain_transformers(directory: Path, kind: str, device: str) -> Encode:
    import torch
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    kind_of_numbers = torch.bfloat16 if kind.endswith("bf16") else torch.float32
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForMaskedLM.from_pretrained(directory, dtype=kind_of_numbers, attn_implementation="sdpa")
    model.eval().to(device)

    @torch.inference_mode()
    def encode(texts: list[str], batch_size: int, most: int) -> object:
        vectors = []
        for start in range(0, len(texts), batch_size):
            part = texts[start : start + batch_size]
            inputs = tokenizer(part, padding=True, truncation=True, max_length=most, return_tensors="pt").to(device)
            inputs.pop("token_type_ids", None)
            logits = model(**inputs).logits.masked_fill_(inputs["attention_mask"][:, :, None] == 0, -torch.inf)
            vectors += [row.nonzero().cpu() for row in logits.amax(1).float().relu().log1p()]
        return vectors

    return encode


def sentence_transformers(directory: Path, kind: str, device: str) -> Encode:
    from sentence_transformers import SparseEncoder

    options: dict[str, Any] = {"device": device, "trust_remote_code": True}  # which the embedded model needs
    if kind == "torch-bf16":
        options["model_kwargs"] = {"dtype": "bfloat16"}
    elif kind == "openvino":
        options["backend"] = "openvino"
    elif kind == "openvino-int8":
        options["backend"] = "openvino"
        options["model_kwargs"] = {"file_name": _quantised(directory)}
    model = SparseEncoder(str(directory), **options)
    return lambda texts, batch_size, most: model.encode(texts, batch_size=batch_size, show_progress_bar=False)


def _quantised(directory: Path) -> str:
    """As its documentation makes it (static post-training quantisation by Optimum Intel), but calibrated with texts
    that are at hand instead of a data set from a hub."""
    name = "openvino/openvino_model_qint8"
    if (directory / f"{name}.xml").exists():
        return f"{name}.xml"
    from datasets import Dataset
    from optimum.intel import OVConfig, OVModelForMaskedLM, OVQuantizationConfig, OVQuantizer
    from transformers import AutoTokenizer

    texts = json.loads((directory / "calibration.json").read_text(encoding="utf-8"))
    tokenizer = AutoTokenizer.from_pretrained(directory)
    columns = tokenizer(texts, padding="max_length", max_length=64, truncation=True)
    quantizer = OVQuantizer.from_pretrained(OVModelForMaskedLM.from_pretrained(directory, export=True))
    with tempfile.TemporaryDirectory() as temporary:
        quantizer.quantize(
            calibration_dataset=Dataset.from_dict(dict(columns)),
            ov_config=OVConfig(quantization_config=OVQuantizationConfig(num_samples=len(texts))),
            save_directory=temporary,
        )
        (directory / "openvino").mkdir(exist_ok=True)
        for suffix in (".bin", ".xml"):  # the last one says that all is there
            shutil.copyfile(Path(temporary) / f"openvino_model{suffix}", directory / f"{name}{suffix}")
    return f"{name}.xml"


def main() -> None:
    kind, directory = sys.argv[1], Path(sys.argv[2])
    device = sys.argv[3] if len(sys.argv) > 3 else "cpu"
    if kind.startswith("ours"):
        encode = ours(directory, kind.partition(":")[2] or "auto", device)
    elif kind.startswith("transformers"):
        encode = plain_transformers(directory, kind, device)
    else:
        encode = sentence_transformers(directory, kind, device)
    print("ready", flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        started = time.perf_counter()
        encode(asked["texts"], asked["batch_size"], asked["most"])
        print(json.dumps(time.perf_counter() - started), flush=True)


if __name__ == "__main__":
    main()
