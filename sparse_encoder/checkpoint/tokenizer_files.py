"""The tokenizer of a checkpoint: its vocabulary, its special tokens and its length, from what its files say."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import tokenizers

from sparse_encoder.artifact import TOKENIZER
from sparse_encoder.checkpoint.directory import Directory, SourceError
from sparse_encoder.tokenizer import tokens_by_id

CONFIG, SPECIAL = "tokenizer_config.json", "special_tokens_map.json"
_NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_NAMED_IDS = ("bos_token_id", "eos_token_id", "sep_token_id", "pad_token_id", "cls_token_id", "mask_token_id")
_OF_BERT = {
    "do_lower_case": "lowercase",
    "strip_accents": "strip_accents",
    "tokenize_chinese_chars": "handle_chinese_chars",
}
_UNLIMITED = 1_000_000  # transformers writes 1e30 for "no limit"


@dataclass(frozen=True, slots=True)
class SourceTokenizer:
    """What the files of a tokenizer say."""

    backend: tokenizers.Tokenizer  #: pads with `pad_id`
    size: int  #: ids are 0 to size-1
    pad_id: int
    special_ids: tuple[int, ...]  #: ascending; also those that no token has
    max_length: int | None  #: tokens

    def differences(self, other: SourceTokenizer) -> list[str]:
        """The parts in which `other` makes other tokens of a text."""
        mine, theirs = (json.loads(one.backend.to_str()) for one in (self, other))
        parts = ("added_tokens", "normalizer", "pre_tokenizer", "post_processor", "model")
        different = [part for part in parts if mine.get(part) != theirs.get(part)]
        return different + (["special tokens"] if self.special_ids != other.special_ids else [])

    def to_json(self) -> str:
        """For `tokenizer.json` of an artifact."""
        return json.dumps(json.loads(self.backend.to_str()), ensure_ascii=False) + "\n"


def read_tokenizer(directory: Directory, config: Mapping[str, Any]) -> SourceTokenizer:
    """The tokenizer of a checkpoint whose `config.json` is `config`.

    Special tokens are those that the tokenizer knows as such. The ids in `config` count only if it knows none: where
    both differ, the tokenizer is what made the training data.

    :raises SourceError: if there is none, or it cannot be read.
    """
    settings = {**directory.settings(SPECIAL), **directory.settings(CONFIG)}
    backend = _backend(directory, settings)
    try:
        tokens = tokens_by_id(backend)
    except ValueError as error:
        raise SourceError(f"{directory.root}: {error}") from error
    if settings.get("truncation_side", "right") != "right":
        raise SourceError(
            f"its tokenizer cuts off the beginning of a long text (truncation_side {settings['truncation_side']!r}), "
            "this service the end, so their vectors would differ: set truncation_side to right in "
            f"{CONFIG} if you want it so"
        )
    size = len(tokens)
    special = {token_id for token_id, token in backend.get_added_tokens_decoder().items() if token.special}
    named_tokens = (backend.token_to_id(token) for token in _named_tokens(settings))
    special |= {token_id for token_id in named_tokens if token_id is not None}
    if not special:
        named_ids = [config.get(name) for name in _NAMED_IDS]
        special = {token_id for token_id in named_ids if type(token_id) is int and 0 <= token_id < size}
    special |= {token_id for token_id, token in enumerate(tokens) if token is None}
    pad_id = _pad_id(backend, settings, config, size)
    backend.no_truncation()
    backend.enable_padding(pad_id=pad_id, pad_token=backend.id_to_token(pad_id))
    length = settings.get("model_max_length")
    usable = isinstance(length, int | float) and 3 <= length < _UNLIMITED
    return SourceTokenizer(backend, size, pad_id, tuple(sorted(special)), int(length) if usable and length else None)


def _backend(directory: Directory, settings: Mapping[str, Any]) -> tokenizers.Tokenizer:
    document = directory.settings(TOKENIZER)
    if not document:
        return _from_vocabulary(directory)
    normalizer = document.get("normalizer")
    if isinstance(normalizer, dict) and normalizer.get("type") == "BertNormalizer":
        # Where both say something, transformers takes the settings.
        normalizer |= {ours: settings[theirs] for theirs, ours in _OF_BERT.items() if theirs in settings}
    try:
        return tokenizers.Tokenizer.from_str(json.dumps(document))
    except Exception as error:  # the library raises plain Exception
        raise SourceError(
            f"{directory.root / TOKENIZER} is no readable tokenizer ({error}): download it again"
        ) from error


def _from_vocabulary(directory: Directory) -> tokenizers.Tokenizer:
    """Of an older checkpoint, which only transformers can put together from its vocabulary."""
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise SourceError(
            f"{directory.root} has no {TOKENIZER}, and making one from its vocabulary takes transformers: "
            "install the extra convert (pip install -e '.[convert]')"
        ) from error
    for name in ("vocab.txt", "vocab.json", "merges.txt", "sentencepiece.bpe.model", "spiece.model", "config.json"):
        directory.file(name)  # so that they count among what was read
    try:
        # Without trust_remote_code nothing of the checkpoint is run.
        tokenizer = AutoTokenizer.from_pretrained(str(directory.root), local_files_only=True, trust_remote_code=False)
        return tokenizers.Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    except Exception as error:  # whatever a damaged vocabulary leads to
        raise SourceError(
            f"{directory.root} has no {TOKENIZER}, and transformers cannot make one from its files ({error}): "
            "save its tokenizer again"
        ) from error


def _named_tokens(settings: Mapping[str, Any]) -> Iterator[str]:
    for name in _NAMED:
        yield from _content(settings.get(name))
    for name in ("additional_special_tokens", "extra_special_tokens"):
        value = settings.get(name)
        for token in value if isinstance(value, list) else list(value.values()) if isinstance(value, dict) else []:
            yield from _content(token)


def _content(token: Any) -> Iterator[str]:
    """A token stands there as itself or as an object with its properties."""
    text = token.get("content") if isinstance(token, dict) else token
    if isinstance(text, str):
        yield text


def _pad_id(backend: tokenizers.Tokenizer, settings: Mapping[str, Any], config: Mapping[str, Any], size: int) -> int:
    """Any id would do, since padding is not attended to; the right one keeps the artifact useful to others."""
    for token in _content(settings.get("pad_token")):
        if (token_id := backend.token_to_id(token)) is not None:
            return int(token_id)
    if backend.padding:
        return min(int(backend.padding["pad_id"]), size - 1)
    named = config.get("pad_token_id")
    return named if type(named) is int and 0 <= named < size else 0
