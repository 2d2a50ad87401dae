"""Texts that nothing is emitted for: what no search can ever find."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

from kiwipiepy import Kiwi

from sparse_encoder.tokenizer import Tokenizer
from training.config import Config
from training.readers import BadRows, read_rows
from training.spelling import SYLLABLES
from training.vocabulary import NEVER, Roles

NOUN_RANK = 40_000  #: of kiwi's vocabulary, which is in order of frequency
_MIDDLE_DOTS = frozenset("ㆍᆞ")  #: letters by Unicode, written as punctuation
_NOUNS = frozenset(["NNG", "NNP"])
_TOKENS = 64  #: of a text
_AT_ONCE = 20_000


def empty_texts(tokenizer: Tokenizer, roles: Roles, texts: Sequence[str]) -> list[str]:
    """Those that hold a letter or a digit, and of which by ``roles`` no token is emitted, not even as a last resort."""
    asked = [text for text in texts if any(character.isalnum() and character not in _MIDDLE_DOTS for character in text)]
    silent = {
        token
        for token, (emitted, last) in enumerate(zip(roles.emitted_as, roles.last or roles.emitted_as, strict=True))
        if emitted == last == NEVER
    }
    tokenised = tokenizer.encode_batch(asked, _TOKENS)
    return [text for text, found in zip(asked, tokenised, strict=True) if silent.issuperset(found.ids)]


def empty_counts(config: Config, tokenizer: Tokenizer, roles: Roles) -> dict[str, dict[str, int]]:
    """For each list of words: how many ``texts`` it has, and how many are ``empty``."""
    counts = {}
    for name, texts in (
        ("syllables", map(chr, SYLLABLES)),
        ("nouns", iter(nouns())),
        ("titles", titles(config)),
    ):
        read = empty = 0
        while part := list(islice(texts, _AT_ONCE)):
            read += len(part)
            empty += len(empty_texts(tokenizer, roles, part))
        if read:
            counts[name] = {"texts": read, "empty": empty}
    return counts


def nouns() -> list[str]:
    """Those among the ``NOUN_RANK`` most frequent morphemes of general Korean."""
    kiwi = Kiwi(model_type="cong")
    found = (kiwi.morpheme(rank) for rank in range(NOUN_RANK))
    return list(dict.fromkeys(morpheme.form for morpheme in found if morpheme.tag in _NOUNS))


def titles(config: Config) -> Iterator[str]:
    """The queries of the recipe's passages that are one field of a row, each once."""
    known: set[str] = set()
    bad = BadRows(config.data.max_bad_rows)
    sources = {(source.path, source.query): None for source in config.data.passages if source.reader == "fields"}
    for path, field in sources:
        for _, row in read_rows(config.data_source(path), [field], bad):
            if row[field] and row[field] not in known:
                known.add(row[field])
                yield row[field]
