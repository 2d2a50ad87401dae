"""What Kiwi's language model CoNg knows of general Korean: which morphemes are frequent, which stand in a like place.

The package ``kiwipiepy_model`` holds embeddings of its 120,000 morphemes, numbered by frequency, made from far more
text than a run has.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kiwipiepy import Kiwi
from tqdm import tqdm

_MORPHEMES = 120_000  #: those that have an embedding, most frequent first
_NEIGHBOURS = 60  #: morphemes that are asked for; half of them have a piece
#: What may be a word: nouns, stems, roots, adverbs, determiners, pronouns, foreign words.
_WORD_TAGS = frozenset({"NNG", "NNP", "XR", "VV", "VA", "MAG", "SL", "NNB", "NP", "MM"})
#: What is named as a related word: nouns, roots, foreign words, stems.
_NEIGHBOUR_TAGS = frozenset({"NNG", "NNP", "XR", "SL", "VV", "VA"})


@dataclass(frozen=True, slots=True)
class Morpheme:
    form: str  #: as CoNg writes it; its key is in lower case
    tag: str  #: without what tells irregular stems
    full_tag: str
    rank: int  #: by frequency, from 0


Neighbours = dict[str, list[tuple[str, float]]]  #: by word: others in lower case with their cosine, nearest first


def open_cong() -> Kiwi:
    return Kiwi(model_type="cong-global", num_workers=1)


def general_morphemes(kiwi: Any) -> dict[str, Morpheme]:
    """The words of general Korean by their form in lower case, each with its most frequent reading."""
    out: dict[str, Morpheme] = {}
    for rank in range(_MORPHEMES):
        try:
            token = kiwi.morpheme(rank)
        except ValueError:  # a model with fewer
            break
        tag = token.tag.split("-")[0]
        if token.form and tag in _WORD_TAGS:
            out.setdefault(token.form.lower(), Morpheme(token.form, tag, token.tag, rank))
    return out


def neighbours(kiwi: Any, words: Mapping[str, Morpheme]) -> Neighbours:
    """The nearest morphemes of each of ``words``; of one that CoNg has no vector of, none."""
    out: Neighbours = {}
    for word, morpheme in tqdm(words.items(), desc="neighbours", unit="word"):
        try:
            found = kiwi.most_similar_morphemes((morpheme.form, morpheme.full_tag), _NEIGHBOURS)
        except ValueError:
            continue
        out[word] = [
            (item.form.lower(), float(item.score))
            for item in found
            if item.form.lower() != word and item.tag.split("-")[0] in _NEIGHBOUR_TAGS
        ]
    return out
