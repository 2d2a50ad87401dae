"""Syllables that no piece holds, taken letter by letter: else WordPiece reads the whole word as ``[UNK]``."""

from __future__ import annotations

import tempfile
import unicodedata
from collections.abc import Iterable
from pathlib import Path

import sentencepiece
from sentencepiece import sentencepiece_model_pb2 as model_pb2
from tokenizers import Tokenizer, normalizers

SYLLABLES = range(ord("가"), ord("힣") + 1)  #: 11,172


def spelt(pieces: Iterable[str]) -> dict[str, str]:
    """For each syllable that is in no piece its letters (Hangul Jamo, in normal form D), if these are pieces both at
    the beginning of a word and within one."""
    known = frozenset(pieces)
    written = frozenset("".join(known))
    found = {}
    for syllable in map(chr, SYLLABLES):
        letters = unicodedata.normalize("NFD", syllable)
        if syllable not in written and all(letter in known and f"##{letter}" in known for letter in letters):
            found[syllable] = letters
    return found


def spell(tokenizer: Tokenizer, pieces: Iterable[str]) -> None:
    """Has ``tokenizer`` read what ``spelt`` finds letter by letter, as its last step before it looks for pieces; in
    place of such a step that it has."""
    before = tokenizer.normalizer
    steps = [] if before is None else list(before) if isinstance(before, normalizers.Sequence) else [before]  # type: ignore[call-overload]
    if steps and isinstance(steps[-1], normalizers.Precompiled):
        steps.pop()
    letters = spelt(pieces)
    tokenizer.normalizer = normalizers.Sequence([*steps, *([replacing(letters)] if letters else [])])


def replacing(texts: dict[str, str]) -> normalizers.Normalizer:
    """Puts each value in the place of its key: by a trie, in the format of sentencepiece, so that it costs nothing."""
    rules = "".join(f"{_code_points(key)}\t{_code_points(value)}\n" for key, value in texts.items())
    sentencepiece.SetMinLogLevel(1)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rules.tsv"
        path.write_text(rules, encoding="ascii")
        model = model_pb2.ModelProto()  # type: ignore[attr-defined]
        model.ParseFromString(sentencepiece.SentencePieceNormalizer(rule_tsv=str(path)).serialized_model_proto())
    return normalizers.Precompiled(model.normalizer_spec.precompiled_charsmap)


def _code_points(text: str) -> str:
    return " ".join(f"{ord(character):X}" for character in text)
