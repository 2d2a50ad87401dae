"""A WordPiece vocabulary out of morphemes: stems start words, particles and endings continue them, never emitted.

The morphological analyser (kiwipiepy) is needed here only. What comes out is a plain WordPiece ``tokenizer.json``:
at run time 손해를 becomes 손해 + ##를 at WordPiece speed. Beside it stand the *roles*: which tokens may be emitted,
and under which other token a piece is emitted (##배상 as 배상), so that a noun matches wherever in a compound it is.
"""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from kiwipiepy import Kiwi
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from torch import Tensor
from tqdm import tqdm

from training.spelling import spell

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
NEVER = -1  #: in ``Roles.emitted_as``: this token never leaves the encoder

HANGUL = re.compile(r"[가-힣]")
_LATIN = re.compile(r"[a-z]+")
_WORD = re.compile(r"[0-9A-Za-z가-힣㐀-鿿]+")
#: Middle dots (of which NFKC makes ㆍ the vowel ᆞ) and symbols stand between words and are no piece: as spaces they
#: part the words, else a word that holds one would become [UNK] as a whole. ASCII is left to the pre-tokenizer.
_SEPARATOR = r"[ㆍᆞ·‧・∙•]|(?![\x00-\x7F])\p{S}"
_PUNCTUATION = "!\"#$%&'()*+,-./:;<=>?@[]^_`{|}~·「」『』…“”‘’"
#: Dependent nouns and verb stems that only carry grammar (~인 것, ~할 수, ~에 관하여): as search terms they are noise.
_GRAMMATICAL_WORDS = """
    것/NNB 수/NNB 등/NNB 때/NNB 바/NNB 데/NNB 줄/NNB 뿐/NNB 듯/NNB 채/NNB 따위/NNB 때문/NNB 중/NNB 후/NNG 이/MM
    그/MM 저/MM
    하/VV 되/VV 있/VA 있/VV 없/VA 같/VA 대하/VV 관하/VV 위하/VV 의하/VV 통하/VV 인하/VV 따르/VV 이르/VV 아니/VCN
"""
_GRAMMATICAL = frozenset(_GRAMMATICAL_WORDS.split())
#: How much more often than an ending a single syllable must be content to be emitted: one that often is an ending
#: (요, 야, 지, 기) is noise as a search term, whatever else it is at times.
_SYLLABLE_CONTENT = 4
_ENDING_SYLLABLES = frozenset("요죠까")  #: of informal speech, where the analyser often takes them for nouns
_CONTENT_TAG_NAMES = "NNG NNP NNB NR VV VA MM MAG XPN XSN XR SL SN SH IC W_SERIAL"
_CONTENT_TAGS = frozenset(_CONTENT_TAG_NAMES.split())


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of a word: one content morpheme, or neighbouring functional ones together."""

    surface: str
    content: bool


Word = tuple[Segment, ...]


@dataclass(frozen=True)
class Roles:
    """For each token id the id it is emitted as, ``NEVER`` if it is not: [vocabulary]. ``last``: the same for a text of
    which no token is emitted; empty = such a text stays empty."""

    emitted_as: list[int]
    last: list[int] = field(default_factory=list)

    @property
    def never_emitted(self) -> list[int]:
        targets = {*self.emitted_as, *self.last}
        return [token for token in range(len(self.emitted_as)) if token not in targets]

    @property
    def emitted(self) -> Tensor:
        """The ids that can leave the encoder, ascending."""
        return torch.tensor(sorted({*self.emitted_as, *self.last} - {NEVER}))

    def save(self, path: Path) -> None:
        path.write_text(json.dumps({"emitted_as": self.emitted_as, "last": self.last}), encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Roles:
        document = json.loads(path.read_text(encoding="utf-8"))
        return cls(document["emitted_as"], document.get("last", []))


def is_content(form: str, tag: str) -> bool:
    """Whether a kiwi morpheme is something one searches for: nouns, stems, roots, numbers, foreign words."""
    if f"{form}/{tag}" in _GRAMMATICAL:
        return False
    return tag.split("-")[0] in _CONTENT_TAGS


def analyse(texts: Iterable[str], *, workers: int = 2) -> Counter[Word]:
    """Count the segmented, lower-cased words of ``texts``."""
    texts = list(texts)
    words: Counter[Word] = Counter()
    analysed = Kiwi(num_workers=workers).tokenize(iter(texts))
    bar = tqdm(zip(texts, analysed, strict=True), total=len(texts), desc="morphemes", unit="text")
    for text, morphemes in bar:
        label: list[tuple[int, bool]] = [(-1, False)] * len(text)
        for index, morpheme in enumerate(morphemes):
            for at in range(morpheme.start, min(morpheme.start + max(morpheme.len, 1), len(text))):
                if label[at][0] == -1:  # contracted forms overlap: the first morpheme keeps the syllable
                    label[at] = (index, is_content(morpheme.form, morpheme.tag))
        for match in _WORD.finditer(text):
            words[_segment(text, match.start(), match.end(), label)] += 1
    return words


def save_words(words: Counter[Word], path: Path) -> None:
    """A line a word: its segments, each with + for content and - for function, and how often it occurs."""
    with path.open("w", encoding="utf-8") as file:
        for word, n in words.items():
            segments = " ".join(("+" if segment.content else "-") + segment.surface for segment in word)
            file.write(f"{segments}\t{n}\n")


def load_words(path: Path) -> Counter[Word]:
    """What ``save_words`` wrote."""
    words: Counter[Word] = Counter()
    with path.open(encoding="utf-8") as file:
        for line in file:
            segments, n = line.rstrip("\n").split("\t")
            words[tuple(Segment(part[1:], part[0] == "+") for part in segments.split(" "))] = int(n)
    return words


def _segment(text: str, start: int, end: int, label: list[tuple[int, bool]]) -> Word:
    segments: list[list[str]] = []
    keys: list[tuple[int, bool]] = []
    for at in range(start, end):
        index, content = label[at]
        key = (index if content else -1, content)
        if keys and keys[-1] == key:
            segments[-1].append(text[at])
        else:
            keys.append(key)
            segments.append([text[at]])
    return tuple(
        Segment("".join(characters).lower(), content) for characters, (_, content) in zip(segments, keys, strict=True)
    )


@dataclass(frozen=True)
class Counts:
    """How often each surface starts a word, continues one, and with which role."""

    starts: Counter[str]
    continuations: Counter[str]
    endings: Counter[str]
    function_starts: Counter[str]
    characters: Counter[str]

    @classmethod
    def of(cls, words: Counter[Word]) -> Counts:
        counts = cls(Counter(), Counter(), Counter(), Counter(), Counter())
        for word, n in words.items():
            for position, segment in enumerate(word):
                for character in segment.surface:
                    counts.characters[character] += n
                if segment.content:
                    (counts.continuations if position else counts.starts)[segment.surface] += n
                else:
                    (counts.endings if position else counts.function_starts)[segment.surface] += n
        return counts


def build_pieces(words: Counter[Word], size: int) -> list[str]:
    """The vocabulary, most needed first: specials, characters, endings, digits and Latin, then morphemes by count.

    Pieces that cross a border between stem and ending more often than not are taken out again (three rounds), because
    greedy longest-match would otherwise swallow the particle with the noun.
    """
    counts = Counts.of(words)
    fixed = list(dict.fromkeys(_fixed_pieces(counts, size)))
    candidates: Counter[str] = Counter()
    for surface, n in (counts.starts + counts.continuations).items():
        if HANGUL.search(surface) and len(surface) >= 2:
            candidates[surface] = n
    for surface, n in counts.continuations.items():
        if HANGUL.search(surface) and len(surface) >= 2 and n >= 12:
            candidates[f"##{surface}"] = int(n * 0.7)
    pieces = dict.fromkeys(fixed)
    for piece, _ in candidates.most_common():
        if len(pieces) >= size * 1.15:
            break
        if not piece.startswith("##") or piece[2:] in pieces:
            pieces[piece] = None
    protected = set(fixed)
    for _ in range(3):
        crossing, clean = border_counts(words, pieces)
        wrong = {
            piece
            for piece, n in crossing.items()
            if (n > clean[piece] and piece not in protected)
            or (n > 2 * clean[piece] and len(piece.removeprefix("##")) > 1)
        }
        pieces = {piece: None for piece in pieces if piece not in wrong}
    return list(pieces)[:size]


def _fixed_pieces(counts: Counts, size: int) -> Iterator[str]:
    """What every text needs. The shares (of 24,000: 2,200 endings, 1,800 Latin words ...) scale with ``size``."""
    share = size / 24_000
    yield from SPECIAL_TOKENS
    yield from _PUNCTUATION
    for character, n in counts.characters.most_common():
        if (HANGUL.match(character) and n >= 3) or character.isascii() or n >= 25:
            yield character
            if HANGUL.match(character) or character.isascii() or n >= 25:
                yield f"##{character}"
    yield from (f"##{surface}" for surface, n in counts.endings.most_common(int(2200 * share)) if n >= 8)
    yield from (surface for surface, _ in counts.function_starts.most_common(int(200 * share)))
    everything = counts.starts + counts.continuations
    yield from (str(year) for year in range(1900, 2031))
    for number in range(100):
        yield str(number)
        yield f"##{number:02d}"
    numbers = Counter({s: n for s, n in everything.items() if s.isdigit() and 2 <= len(s) <= 4})
    yield from (surface for surface, _ in numbers.most_common(int(300 * share)))
    latin = Counter({s: n for s, n in everything.items() if _LATIN.fullmatch(s)})
    yield from (surface for surface, n in latin.most_common(int(1800 * share)) if n >= 4 and len(surface) >= 2)
    parts: Counter[str] = Counter()
    for surface, n in latin.items():
        for length in (2, 3, 4):
            for start in range(len(surface) - length + 1):
                parts[("##" if start else "") + surface[start : start + length]] += n
    yield from (piece for piece, _ in parts.most_common(int(1200 * share)))


def split_word(word: str, pieces: Container[str]) -> list[tuple[int, int]] | None:
    """Greedy longest-match, as WordPiece does it; ``None`` if the word has an unknown part."""
    spans: list[tuple[int, int]] = []
    start = 0
    while start < len(word):
        end = len(word)
        while end > start and (("##" if start else "") + word[start:end]) not in pieces:
            end -= 1
        if end == start:
            return None
        spans.append((start, end))
        start = end
    return spans


def piece_of(word: str, span: tuple[int, int]) -> str:
    return ("##" if span[0] else "") + word[span[0] : span[1]]


def border_counts(words: Counter[Word], pieces: Container[str]) -> tuple[Counter[str], Counter[str]]:
    """How often each piece lies across a border of stem and ending, and how often it does not."""
    crossing: Counter[str] = Counter()
    clean: Counter[str] = Counter()
    for word, n in words.items():
        surface = "".join(segment.surface for segment in word)
        borders: set[int] = set()
        at = 0
        for before, after in itertools.pairwise(word):
            at += len(before.surface)
            if before.content != after.content:
                borders.add(at)
        for span in split_word(surface, pieces) or ():
            crosses = any(span[0] < border < span[1] for border in borders)
            (crossing if crosses else clean)[piece_of(surface, span)] += n
    return crossing, clean


def assign_roles(words: Counter[Word], pieces: list[str]) -> Roles:
    """Emit what mostly covers content; a ``##piece`` goes out as its bare form where there is one."""
    index = {piece: i for i, piece in enumerate(pieces)}
    content: Counter[str] = Counter()
    function: Counter[str] = Counter()
    for word, n in words.items():
        surface = "".join(segment.surface for segment in word)
        labels = [segment.content for segment in word for _ in segment.surface]
        for span in split_word(surface, index) or ():
            covered = sum(labels[span[0] : span[1]])
            (content if 2 * covered >= span[1] - span[0] else function)[piece_of(surface, span)] += n

    def emits(i: int, piece: str) -> bool:
        if i < len(SPECIAL_TOKENS) or not any(character.isalnum() for character in piece):
            return False
        if content[piece] + function[piece] == 0:  # rare: content, unless it only ever continues words
            return not piece.startswith("##")
        bare = piece.removeprefix("##")
        if bare in _ENDING_SYLLABLES:
            return False
        if len(bare) == 1:  # both forms are emitted as one, so they are judged as one
            forms = (bare, f"##{bare}")
            return sum(content[f] for f in forms) >= _SYLLABLE_CONTENT * sum(function[f] for f in forms)
        return content[piece] >= function[piece]

    return Roles(
        [index.get(piece.removeprefix("##"), i) if emits(i, piece) else NEVER for i, piece in enumerate(pieces)]
    )


def build_tokenizer(pieces: list[str], *, strip_accents: bool = False) -> Tokenizer:
    """WordPiece over ``pieces``: NFKC, middle dots and symbols as spaces, lower case, ``[CLS] text [SEP]``; a syllable
    that is in no piece letter by letter, if these are pieces. ``strip_accents``: without combining marks (café, and
    what makes an emoji of ❤)."""
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=64))
    unaccented = [normalizers.NFD(), normalizers.StripAccents(), normalizers.NFC()] if strip_accents else []
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.NFKC(),
            *unaccented,
            normalizers.Replace(Regex(_SEPARATOR), " "),
            normalizers.BertNormalizer(lowercase=True, strip_accents=False, handle_chinese_chars=True),
        ]
    )
    spell(tokenizer, pieces)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])],
    )
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    return tokenizer


def build_vocabulary(words: Counter[Word], size: int, out: Path) -> tuple[Tokenizer, Roles]:
    """Write ``tokenizer.json`` and ``roles.json`` to ``out``; ``words`` as ``analyse`` counts them."""
    pieces = build_pieces(words, size)
    roles = assign_roles(words, pieces)
    tokenizer = build_tokenizer(pieces)
    out.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(out / "tokenizer.json"))
    roles.save(out / "roles.json")
    return tokenizer, roles
