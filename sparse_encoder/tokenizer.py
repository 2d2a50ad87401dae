"""Text to token ids, the same way in training and serving."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import tokenizers

PAD_TOKEN = "[PAD]"
#: Share of a window that the next one has as well, at least: what a border cuts in two is whole in one of them.
WINDOW_OVERLAP = 1 / 8
LONE_SURROGATE = re.compile("[\ud800-\udfff]")

#: Characters that are read for each token that a model takes: at first, and so many times as many while they have fewer
#: tokens than that, up to the last. A text that has fewer by then is white space or one endless word.
FIRST_CHARACTERS, TIMES, LAST_CHARACTERS = 8, 8, 256
#: Tokens beyond the last one that a model takes: where a text is cut, its last tokens may differ.
SPARE_TOKENS = 16
#: Letters that a single character has in compatibility forms (U+FDFA), at most.
MOST_UNFOLDED = 18


MOST_IDS = 10_000_000  #: of a vocabulary; beyond it a file is damaged or hostile


def tokens_by_id(backend: tokenizers.Tokenizer) -> list[str | None]:
    """The vocabulary of `backend` with its added tokens, None for an id that no token has.

    :raises ValueError: if an id is beyond `MOST_IDS`.
    """
    ids = backend.get_vocab(with_added_tokens=True)
    last = max(ids.values(), default=-1)
    if last >= MOST_IDS:
        raise ValueError(f"the vocabulary has the id {last}, expected less than {MOST_IDS:,}: repair tokenizer.json")
    tokens: list[str | None] = [None] * (last + 1)
    for token, token_id in ids.items():
        tokens[token_id] = token
    return tokens


@dataclass(frozen=True, slots=True)
class TokenisedText:
    """One text, ready for a model."""

    ids: list[int]  #: with the special tokens around the content, at most `max_length`
    truncated: bool  #: the end of the text did not fit
    content_tokens: int  #: ids that are not special tokens ([UNK] is special); 0 means blank, whose vector is empty


@dataclass(frozen=True, slots=True)
class Piece:
    """A token of a text, and where it stands."""

    id: int
    token: str  #: as the vocabulary writes it
    text: str  #: what it stands for in the text, in normal form C; of a special token the token itself
    start: int | None  #: characters before it; None for a special token
    stop: int | None


class Tokenizer:
    """A `tokenizers.Tokenizer` behind Unicode normalisation and an exact truncation rule. Safe to share by threads."""

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        """Takes `backend` over and clears its own truncation and padding, which are state that threads would share.

        It is padded with the id that `backend` pads with, or else with [PAD].

        :raises ValueError: if it says neither, or an id is beyond `MOST_IDS`.
        """
        padding = backend.padding
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        self._template_tokens = backend.num_special_tokens_to_add(is_pair=False)
        self._special_ids = {id_ for id_, token in backend.get_added_tokens_decoder().items() if token.special}
        #: By id; an id without a token has the empty one, which is never written.
        self.vocabulary: Sequence[str] = tuple(token or "" for token in tokens_by_id(backend))
        size = len(self.vocabulary)
        pad_id = padding["pad_id"] if padding else backend.token_to_id(PAD_TOKEN)
        if pad_id is None or pad_id >= size:
            raise ValueError(
                f"the vocabulary has no {PAD_TOKEN} token: add it to tokenizer.json, or name another one in its padding"
            )
        self.pad_id: int = pad_id

    @classmethod
    def from_file(cls, path: Path) -> Tokenizer:
        """Reads a `tokenizer.json`.

        :raises ValueError: if the file cannot be read as a tokenizer, or as `__init__` says.
        """
        try:
            backend = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises plain Exception
            raise ValueError(f"{path} is not a readable tokenizer.json: {error}") from error
        return cls(backend)

    def encode_batch(self, texts: Sequence[str], max_length: int) -> list[TokenisedText]:
        """One `TokenisedText` for each text, in order: the first window of `encode_windows`.

        :raises ValueError: if `max_length` leaves no room for content.
        """
        return [text for (text,) in self.encode_windows(texts, max_length, 1)]

    def encode_windows(self, texts: Sequence[str], max_length: int, most: int) -> list[list[TokenisedText]]:
        """For each text its windows, in order; other threads run during most of the work.

        Of a long text only the beginning is normalised and tokenised, as much of it as has `max_length` tokens; so the
        work is bounded by `most_characters` for each text, whatever its characters unfold to. What is beyond is cut
        off as well if there are fewer tokens in that.

        Texts are put in Unicode normal form C, so that decomposed Hangul (as macOS writes it) equals composed Hangul.
        A lone surrogate, which no UTF-8 text has but JSON escapes can spell, counts as U+FFFD. What is longer than
        `max_length` tokens comes in windows of about one length, evenly over the text, neighbours with
        `WINDOW_OVERLAP` in common or more; what is too long for `most` of them loses its end, and the last one says so.
        Each has the special tokens around it.

        :raises ValueError: if `max_length` leaves no room for content.
        """
        read = self._read(texts, max_length, most, self._backend.encode_batch_fast)
        return [self._tokenised(windows, truncated=truncated) for windows, truncated in read]

    def located_windows(self, text: str, max_length: int, most: int) -> list[list[Piece]]:
        """The tokens of each window that `encode_windows` makes of `text`, at their places in `text` as it is given.

        Slower than that: offsets are computed, and followed back through the normal form.

        :raises ValueError: if `max_length` leaves no room for content.
        """
        ((windows, _),) = self._read([text], max_length, most, self._backend.encode_batch)
        places = places_in(text, max(stop for window in windows for _, stop in window.offsets))
        return [
            [
                Piece(token_id, token, token, None, None)
                if token_id in self._special_ids and start == stop
                else Piece(token_id, token, text[places[start] : places[stop]], places[start], places[stop])
                for token_id, token, (start, stop) in zip(window.ids, window.tokens, window.offsets, strict=True)
            ]
            for window in windows
        ]

    def _read(
        self, texts: Sequence[str], max_length: int, most: int, encode: Callable[..., list[tokenizers.Encoding]]
    ) -> list[tuple[list[tokenizers.Encoding], bool]]:
        """Of each text its windows, and whether its end is cut off; `encode`: with or without offsets."""
        room = max_length - self._template_tokens
        if room < 1:
            raise ValueError(f"max_length must exceed the {self._template_tokens} special tokens, got {max_length}")
        reach = room + (most - 1) * widest_step(room)
        found: dict[int, tuple[list[tokenizers.Encoding], bool]] = {}
        missing = list(range(len(texts)))
        characters, last = FIRST_CHARACTERS * reach, LAST_CHARACTERS * reach
        while missing:
            beginnings = [beginning(texts[index], characters) for index in missing]
            contents = encode(list(map(normalise, beginnings)), add_special_tokens=False)
            for index, begun, content in zip(missing, beginnings, contents, strict=True):
                whole = len(begun) == len(texts[index]) or not texts[index][len(begun) :].strip()
                if whole or characters >= last or len(content) >= reach + SPARE_TOKENS:
                    found[index] = self._windows(content, room, most, truncated=not whole)
            missing = [index for index in missing if index not in found]
            characters = min(TIMES * characters, last)
        return [found[index] for index in range(len(texts))]

    def pieces(self, texts: Sequence[str], *, special: bool) -> list[list[Piece]]:
        """The tokens of whole texts, with special ones around them if `special`."""
        whole = list(map(normalise, texts))
        found = self._backend.encode_batch(whole, add_special_tokens=special)
        return [
            [
                Piece(token_id, token, token, None, None)
                if is_special
                else Piece(token_id, token, text[start:stop], start, stop)
                for token_id, token, (start, stop), is_special in zip(
                    encoding.ids, encoding.tokens, encoding.offsets, encoding.special_tokens_mask, strict=True
                )
            ]
            for text, encoding in zip(whole, found, strict=True)
        ]

    def most_characters(self, max_length: int, most: int = 1) -> int:
        """Of a text that are read at first, for at most `most` windows of `max_length` tokens."""
        room = max_length - self._template_tokens
        return FIRST_CHARACTERS * (room + (most - 1) * widest_step(room))

    def _windows(
        self, content: tokenizers.Encoding, room: int, most: int, *, truncated: bool
    ) -> tuple[list[tokenizers.Encoding], bool]:
        step = window_step(len(content), room, most)
        windows = [content]
        if len(content) > room:
            content.truncate(room, stride=room - step)
            windows += content.overflowing
        return [self._backend.post_process(window) for window in windows[:most]], truncated or len(windows) > most

    def _tokenised(self, windows: Sequence[tokenizers.Encoding], *, truncated: bool) -> list[TokenisedText]:
        finished = []
        for index, window in enumerate(windows, start=1):
            ids = window.ids
            content_tokens = len(ids) - sum(map(self._special_ids.__contains__, ids))
            finished.append(TokenisedText(ids, truncated and index == len(windows), content_tokens))
        return finished


def widest_step(room: int) -> int:
    """From the start of one window of `room` tokens to the start of the next, at most."""
    return max(1, room - int(room * WINDOW_OVERLAP))


def window_step(tokens: int, room: int, most: int) -> int:
    """From the start of one window of `room` tokens to the start of the next, such that as few as will do, and `most`
    at most, reach over `tokens`, or as far as they can; the last window is then nearly as long as the others."""
    widest = widest_step(room)
    steps = min(-(-max(0, tokens - room) // widest), most - 1)
    return min(widest, -(-max(0, tokens - room) // steps)) if steps else room


def normalise(text: str) -> str:
    """`text` in Unicode normal form C, with U+FFFD for what UTF-8 cannot hold."""
    return unicodedata.normalize("NFC", LONE_SURROGATE.sub("\ufffd", text))


def places_in(text: str, most: int) -> Sequence[int]:
    """For each of the first `most` characters of `normalise(text)`, and for what follows them, the place in `text`
    where what it was made of begins.

    In one pass: what comes together in normal form C follows each other, from one character that can stand at a
    beginning to the next.
    """
    spelt = LONE_SURROGATE.sub("\ufffd", text)
    if unicodedata.is_normalized("NFC", spelt):
        return range(len(text) + 1)
    places: list[int] = []
    start, begun = 0, ""  # the normal form of what stands since `start`
    marks = False  #: whether that is to be found again, for what was added since
    for index, character in enumerate(spelt):
        if len(places) > most:
            return places
        if unicodedata.combining(unicodedata.normalize("NFD", character)[0]):
            marks = True
            continue
        if marks:
            begun, marks = unicodedata.normalize("NFC", spelt[start:index]), False
        alone = unicodedata.normalize("NFC", character)
        together = unicodedata.normalize("NFC", begun + character)
        if together == begun + alone:
            places += [start] * len(begun)
            start, begun = index, alone
        else:
            begun = together
    return [*places, *[start] * len(unicodedata.normalize("NFC", spelt[start:])), len(text)]


def unfolded(text: str) -> int:
    """Characters of `text` in compatibility forms, as many tokenizers take it: up to `MOST_UNFOLDED` for one."""
    return len(unicodedata.normalize("NFKC", text))


def beginning(text: str, most: int) -> str:
    """The longest beginning of `text` of whole words that has no more than about `most` characters when unfolded."""
    if len(text) * MOST_UNFOLDED <= most:
        return text
    begun = text[:most]
    while (characters := unfolded(begun)) > most and len(begun) > 1:
        begun = begun[: len(begun) * most // characters]
    if len(begun) == len(text):
        return text
    blank = max(begun.rfind(" "), begun.rfind("\n"))
    return begun[:blank] if 2 * blank > len(begun) else begun  # else it is one long word, cut anywhere
