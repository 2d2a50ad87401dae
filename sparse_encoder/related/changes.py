"""What a user wants changed in a table of related words: read from a file, understood in the model's vocabulary."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import tokenizers

from sparse_encoder.artifact import ArtifactError
from sparse_encoder.lexical_tables import NONE, LexicalTables
from sparse_encoder.tokenizer import normalise

MAX_WEIGHT = 100.0  #: far above what any model needs for a word to come first


@dataclass(frozen=True, slots=True)
class Change:
    """A text that holds `word` gets `related`, or does no longer, and the other way round if it is for `both`."""

    word: str
    related: str
    weight: float | None = None  #: None: see `RelatedTable.default_weight`; 0: not related
    both: bool = True

    def __str__(self) -> str:
        return f"{self.word} {'↔' if self.both else '→'} {self.related}"


class RefusedError(Exception):
    """A change that the model cannot take. The message says why."""


def parse_weight(text: str) -> float:
    """:raises ValueError: if it is no weight of a relation."""
    weight = float(text)
    if not (math.isfinite(weight) and 0 <= weight <= MAX_WEIGHT):
        raise ValueError(f"a weight is from 0, which removes, to {MAX_WEIGHT:g}, got {text}")
    return weight


def parse_tsv(lines: Iterable[str], where: str) -> list[Change]:
    """Lines of a word, a related one and, if it is not the default, a weight, with tabs between; blank ones count not.

    :raises ArtifactError: at a line that is not so.
    """
    changes = []
    for number, line in enumerate(lines, start=1):
        fields = [field.strip() for field in line.rstrip("\r\n").split("\t")]
        if not any(fields):
            continue
        try:
            word, related, *rest = fields
            (weight,) = map(parse_weight, rest) if rest else (None,)
        except ValueError as error:
            raise ArtifactError(
                f"{where} line {number} is not a word, a related word and perhaps a weight, with tabs between: {error}"
            ) from error
        changes.append(Change(word, related, weight))
    return changes


class Words:
    """The words that a model has whole."""

    def __init__(self, tokenizer: tokenizers.Tokenizer, vocabulary: Sequence[str], tables: LexicalTables) -> None:
        self._tokenizer, self._vocabulary, self._tables = tokenizer, vocabulary, tables

    def find(self, word: str) -> int:
        """The id under which `word` is emitted.

        :raises RefusedError: if it is not one word of the vocabulary.
        """
        ids = self._tokenizer.encode(normalise(word), add_special_tokens=False).ids
        if not ids:
            raise RefusedError(f"{word!r} holds nothing that the tokenizer keeps")
        if len(ids) > 1:
            pieces = " + ".join(self._vocabulary[token_id] for token_id in ids)
            raise RefusedError(
                f"the vocabulary does not have {word} whole, it is cut into {pieces}: relate one of these"
            )
        token = int(self._tables.own_token[ids[0]])
        if token == NONE:
            token = int(self._tables.last_token[ids[0]])
        if token == NONE:
            raise RefusedError(f"{word} is never emitted, as particles, endings and signs are")
        return token
