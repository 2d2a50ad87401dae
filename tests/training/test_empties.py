"""Texts whose vector is empty: by the roles of a vocabulary, and by the lists that are counted."""

from __future__ import annotations

import json
from pathlib import Path

from sparse_encoder.tokenizer import Tokenizer
from tests.tiny import build_tokenizer
from training.config import Config, DataConfig
from training.empties import empty_counts, empty_texts, nouns
from training.vocabulary import NEVER, Roles


def test_a_text_is_empty_whose_tokens_are_never_emitted() -> None:
    tokenizer = Tokenizer(build_tokenizer())
    size = len(tokenizer.vocabulary)
    texts = ["배상", "!?", "", "ㆍ", "\u4e00\u4e01"]
    special = [i for i, token in enumerate(tokenizer.vocabulary) if token.startswith("[")]
    words = Roles([NEVER if i in special else i for i in range(size)])
    assert empty_texts(tokenizer, words, texts) == ["\u4e00\u4e01"]
    assert empty_texts(tokenizer, Roles([NEVER] * size), texts) == ["배상", "\u4e00\u4e01"]
    assert empty_texts(tokenizer, Roles([NEVER] * size, words.emitted_as), texts) == ["\u4e00\u4e01"]


def test_the_lists() -> None:
    found = nouns()
    assert {"사람", "치매", "기침", "배추"} <= set(found)
    assert 10_000 < len(found) < 40_000


def test_titles_are_counted_once_each(tmp_path: Path) -> None:
    rows = [{"title": title, "text": "..."} for title in ("배상", "배상", "\u4e00\u4e01")]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    source = {"name": "p", "path": "p.jsonl", "query": "title", "passage": "text"}
    data = DataConfig.model_validate({"root": str(tmp_path), "passages": (source, {**source, "name": "again"})})
    tokenizer = Tokenizer(build_tokenizer())
    roles = Roles([NEVER if token.startswith("[") else i for i, token in enumerate(tokenizer.vocabulary)])
    counts = empty_counts(Config(name="x", data=data), tokenizer, roles)
    assert counts["titles"] == {"texts": 2, "empty": 1}
    assert counts["syllables"]["texts"] == 11_172
