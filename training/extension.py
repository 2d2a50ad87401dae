"""Pieces for words that a vocabulary leaves without any: as a search term such a word would find nothing.

A vocabulary of morphemes splits what it does not hold into syllables, of which those that often are endings are never
emitted: 수은 (mercury) as 수 + ##은 would be silent. A word with a syllable that was too rare is unknown as a whole.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from kiwipiepy import Kiwi
from tokenizers import Tokenizer

from training.spelling import spell
from training.vocabulary import HANGUL, NEVER, Counts, Roles, Word, border_counts, piece_of, split_word

_LEAST = 2  #: times that a noun must occur, and must continue other words to be a piece there as well
_NOUN_TAGS = frozenset({"NNG", "NNP"})


def syllables() -> list[str]:
    """The 2,350 syllables of KS X 1001, those that Korean is written with."""
    codes = (bytes((row, cell)) for row in range(0xB0, 0xC9) for cell in range(0xA1, 0xFF))
    return [code.decode("euc_kr") for code in codes]


def silent_nouns(words: Counter[Word], pieces: Iterable[str], emitted: frozenset[str]) -> Counter[str]:
    """Content segments of two or more syllables of which no piece is emitted, as pieces (``##`` where they continue a
    word), and how often each occurs."""
    known = frozenset(pieces)
    silent: Counter[str] = Counter()
    for word, n in words.items():
        surface = "".join(segment.surface for segment in word)
        spans = split_word(surface, known)
        end = 0
        for segment in word:
            start, end = end, end + len(segment.surface)
            if not segment.content or len(segment.surface) < 2 or not HANGUL.search(segment.surface) or spans is None:
                continue
            if not any(piece_of(surface, (a, b)) in emitted for a, b in spans if a < end and b > start):
                silent[("##" if start else "") + segment.surface] += n
    return silent


def missing_pieces(words: Counter[Word], pieces: list[str], roles: Roles) -> list[str]:
    """What ``pieces`` lack: syllables, alone and within words, and nouns that would be silent without a piece.

    A noun is what the analyser takes for one noun, whatever stands around it, and what starts words as content more
    often than as an ending; left out again is what mostly crosses the border of a stem and an ending, and with a noun
    also its form within words, which would have nothing to be emitted as.
    """
    known = set(pieces)
    letters = [piece for letter in syllables() for piece in (letter, f"##{letter}") if piece not in known]
    speaking = {piece for piece, target in zip(pieces, roles.emitted_as, strict=True) if target != NEVER}
    counts, kiwi = Counts.of(words), Kiwi()
    silent = silent_nouns(words, [*pieces, *letters], frozenset(speaking | set(letters)))
    bare: Counter[str] = Counter()
    for piece, n in silent.items():
        bare[piece.removeprefix("##")] += n
    nouns: list[str] = []
    for noun, n in bare.most_common():
        if n < _LEAST or counts.starts[noun] <= counts.function_starts[noun] or not _is_noun(kiwi, noun):
            continue
        nouns.append(noun)
        if silent[f"##{noun}"] >= _LEAST and silent[f"##{noun}"] > counts.endings[noun]:
            nouns.append(f"##{noun}")
    nouns = [noun for noun in nouns if noun not in known]
    crossing, clean = border_counts(words, frozenset([*pieces, *letters, *nouns]))
    kept = [noun for noun in nouns if crossing[noun] <= clean[noun]]
    bare_forms = known | set(kept)
    return letters + [noun for noun in kept if noun.removeprefix("##") in bare_forms]


def _is_noun(kiwi: Kiwi, text: str) -> bool:
    return [(token.form, token.tag in _NOUN_TAGS) for token in kiwi.tokenize(text)] == [(text, True)]


def extend(tokenizer: Tokenizer, roles: Roles, words: Counter[Word]) -> tuple[Tokenizer, Roles]:
    """The vocabulary with its missing pieces at the end, all emitted as their bare form; ids and roles of the others
    stay as they are."""
    pieces = [str(tokenizer.id_to_token(i)) for i in range(tokenizer.get_vocab_size())]
    added = missing_pieces(words, pieces, roles)
    state = json.loads(tokenizer.to_str())
    index: dict[str, int] = state["model"]["vocab"]
    index.update({piece: i for i, piece in enumerate(added, start=len(pieces))})
    before = dict(zip(pieces, roles.emitted_as, strict=True))

    def target(piece: str) -> int:
        """The bare form, unless that is an older piece which is never emitted."""
        bare = piece.removeprefix("##")
        return index[piece] if before.get(bare) == NEVER else before.get(bare, index[bare])

    targets = [target(piece) for piece in added]
    extended = Tokenizer.from_str(json.dumps(state))
    spell(extended, index)
    return extended, Roles([*roles.emitted_as, *targets])


def extend_vocabulary(tokenizer: Tokenizer, roles: Roles, words: Counter[Word], out: Path) -> None:
    """Write the ``tokenizer.json`` and ``roles.json`` of ``extend`` to ``out``."""
    tokenizer, roles = extend(tokenizer, roles, words)
    out.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(out / "tokenizer.json"))
    roles.save(out / "roles.json")
