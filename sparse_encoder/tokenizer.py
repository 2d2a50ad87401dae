"""Text to token ids, the same way in training and serving."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import tokenizers

PAD_TOKEN = "[PAD]"
#: Share of a window that the next one has as well, at least: what a border cuts in two is whole in one of them.
WINDOW_OVERLAP = 1 / 8
LONE_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class TokenisedText:
    """One text, ready for a model."""

    ids: list[int]  #: with the special tokens around the content, at most `max_length`
    truncated: bool  #: the end of the text did not fit
    content_tokens: int  #: ids that are not special tokens ([UNK] is special); 0 means blank, whose vector is empty


class Tokenizer:
    """A `tokenizers.Tokenizer` behind Unicode normalisation and an exact truncation rule. Safe to share by threads."""

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        """Takes `backend` over and clears its own truncation and padding, which are state that threads would share.

        It is padded with the id that `backend` pads with, or else with [PAD].

        :raises ValueError: if it says neither, or the vocabulary has ids without a token.
        """
        padding = backend.padding
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        self._template_tokens = backend.num_special_tokens_to_add(is_pair=False)
        self._special_ids = {id_ for id_, token in backend.get_added_tokens_decoder().items() if token.special}
        size = backend.get_vocab_size()
        self.vocabulary: Sequence[str] = tuple(filter(None, map(backend.id_to_token, range(size))))
        if len(self.vocabulary) != size:
            raise ValueError(f"the vocabulary has ids without a token: {size} tokens must have the ids 0 to {size - 1}")
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

        Texts are put in Unicode normal form C, so that decomposed Hangul (as macOS writes it) equals composed Hangul.
        A lone surrogate, which no UTF-8 text has but JSON escapes can spell, counts as U+FFFD. What is longer than
        `max_length` tokens comes in windows of about one length, evenly over the text, neighbours with
        `WINDOW_OVERLAP` in common or more; what is too long for `most` of them loses its end, and the last one says so.
        Each has the special tokens around it.

        :raises ValueError: if `max_length` leaves no room for content.
        """
        room = max_length - self._template_tokens
        if room < 1:
            raise ValueError(f"max_length must exceed the {self._template_tokens} special tokens, got {max_length}")
        contents = self._backend.encode_batch_fast([normalise(text) for text in texts], add_special_tokens=False)
        return [self._windows(content, room, most) for content in contents]

    def _windows(self, content: tokenizers.Encoding, room: int, most: int) -> list[TokenisedText]:
        step = window_step(len(content), room, most)
        windows = [content]
        if len(content) > room:
            content.truncate(room, stride=room - step)
            windows += content.overflowing
        truncated = len(windows) > most
        finished = []
        for window in windows[:most]:
            ids = self._backend.post_process(window).ids
            finished.append(TokenisedText(ids, False, sum(id_ not in self._special_ids for id_ in ids)))
        finished[-1] = replace(finished[-1], truncated=truncated)
        return finished


def window_step(tokens: int, room: int, most: int) -> int:
    """From the start of one window of `room` tokens to the start of the next, such that as few as will do, and `most`
    at most, reach over `tokens`, or as far as they can; the last window is then nearly as long as the others."""
    widest = max(1, room - int(room * WINDOW_OVERLAP))
    steps = min(-(-max(0, tokens - room) // widest), most - 1)
    return min(widest, -(-max(0, tokens - room) // steps)) if steps else room


def normalise(text: str) -> str:
    """`text` in Unicode normal form C, with U+FFFD for what UTF-8 cannot hold."""
    return unicodedata.normalize("NFC", LONE_SURROGATE.sub("\ufffd", text))
