"""A checkpoint read and checked: everything that says whether it will be served, before its weights are in memory."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparse_encoder.artifact import CLOSED_BIAS, Activation, Pooling
from sparse_encoder.checkpoint.directory import Directory, SourceError
from sparse_encoder.checkpoint.locate import Located
from sparse_encoder.checkpoint.query_weights import find_query_tokens
from sparse_encoder.checkpoint.shapes import Shape, find_shape, is_artifact
from sparse_encoder.checkpoint.tensors import Tensor
from sparse_encoder.checkpoint.tokenizer_files import SourceTokenizer, read_tokenizer
from sparse_encoder.checkpoint.weights import open_weights, read_file
from sparse_encoder.fields import FieldError
from sparse_encoder.layouts import Layout, layout_of_config
from sparse_encoder.query_tokens import QueryTokens

#: Unless sentence-transformers or the user names a length: longer texts are rare, and cost memory for all.
USUAL_LENGTH = 512
#: Of the code that converts: with another one, what was converted before is not used again.
CONVERSION = 2
#: Weights that checkpoints carry besides and that have no part in the logits.
_UNUSED = re.compile(
    r"(^|\.)(pooler|seq_relationship|discriminator_predictions)\.|(^|\.)(position_ids|token_type_ids)$"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Choices:
    """What a user may say instead of the checkpoint; None leaves it to the checkpoint."""

    max_length_document: int | None = None  #: tokens, special ones included
    max_length_query: int | None = None
    activation: Activation | None = None
    pooling: Pooling | None = None


@dataclass(frozen=True)
class Source:
    """A checkpoint that can be converted."""

    name: str  #: what the user called it
    revision: str  #: the commit on the hub, or "none"
    directory: Directory
    shape: Shape
    layout: Layout
    tensors: Mapping[str, Tensor]  #: by the name that transformers gives it
    tokenizer: SourceTokenizer
    query_tokens: QueryTokens | None
    max_length_document: int
    max_length_query: int
    queries: Source | None = None  #: the encoder that queries have for themselves; of it lengths and prompt are those

    @property
    def never_emitted_ids(self) -> tuple[int, ...]:
        """Ascending."""
        return self.tokenizer.special_ids

    @property
    def config(self) -> dict[str, Any]:
        """For `config.json` of an artifact, without what depends on the weights."""
        config = {**self.layout.config, "vocab_size": self.tokenizer.size}
        if not self.layout.pad_is_position:
            config["pad_token_id"] = self.tokenizer.pad_id
        return config

    @property
    def weight_bytes(self) -> int:
        """Of the artifact's weights, at most."""
        own = sum(4 * int(np.prod(tensor.shape, dtype=np.int64)) for tensor in self.tensors.values())
        return own + (self.queries.weight_bytes if self.queries else 0)

    @cached_property
    def hash(self) -> str:
        """The same for the same files and choices, wherever they lie."""
        # Prompts and the like lie in a file that was read.
        choices = (self.shape.activation, self.shape.pooling, self.max_length_document, self.max_length_query)
        own = self.directory.hash(json.dumps([CONVERSION, *choices]))
        return sha256(f"{own} {self.queries.hash}".encode()).hexdigest() if self.queries else own

    @property
    def version(self) -> str:
        """The id of the artifact."""
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", self.name).strip("-._")[-80:].lstrip("-._") or "checkpoint"
        return f"{name}-{self.hash[:8]}"

    def weights(self) -> tuple[dict[str, NDArray[np.float32]], bool]:
        """The weights of the artifact by their names in transformers, and whether input and output share a matrix.

        Rows beyond the tokenizer's ids are left out.

        :raises SourceError: if one holds NaN or infinity.
        """
        size, plan = self.tokenizer.size, self.layout
        weights = {name: self.tensors[name].read() for name in plan.layers.body}
        embedding = weights[plan.embedding] = self.tensors[plan.embedding].read()[:size]
        if plan.decoder is None:
            return weights, False
        decoder = self.tensors[plan.decoder].read()[:size] if plan.decoder in self.tensors else embedding
        tied = decoder is embedding or np.array_equal(decoder, embedding)
        if not tied:
            weights[plan.decoder] = decoder
        stored = [name for name in plan.biases if name in self.tensors]
        bias = self.tensors[stored[-1]].read()[:size] if stored else np.zeros(size, np.float32)
        bias[list(self.never_emitted_ids)] = CLOSED_BIAS
        names = plan.biases or (plan.decoder.replace(".weight", ".bias"),)
        weights |= dict.fromkeys(names[:1] if tied else names, bias)
        return weights, tied


def read_source(path: Path, name: str, choices: Choices | None = None, revision: str = "none") -> Source:
    """The checkpoint in the directory `path`, of which only headers and texts are read.

    :raises SourceError: if it cannot be served.
    """
    directory, choices = Directory(path), choices or Choices()
    shape = find_shape(directory)
    if shape.queries is None:
        source = _read(directory, shape, name, choices, revision)
        tokens = find_query_tokens(directory, shape, source.tokenizer, source.never_emitted_ids)
        return replace(source, query_tokens=tokens)
    documents = _read(directory, shape, name, replace(choices, max_length_query=None), revision)
    queries = _read(directory, shape.queries, name, replace(choices, max_length_document=None), revision)
    return _paired(documents, queries)


def read_pair(documents: Located, queries: Located, choices: Choices | None = None) -> Source:
    """Two checkpoints as one, of which the second is for queries.

    :raises SourceError: if one of them cannot be served, or the vectors of one are not for those of the other.
    """
    choices = choices or Choices()
    for located in (documents, queries):
        if is_artifact(located.path):
            raise SourceError(
                f"{located.name} is an artifact of this project, one version with all that it needs: give checkpoints "
                "of others, or the artifact alone, without --query-model"
            )
    one = read_source(documents.path, documents.name, replace(choices, max_length_query=None), documents.revision)
    other = read_source(queries.path, queries.name, replace(choices, max_length_document=None), queries.revision)
    for source in (one, other):
        if source.queries or source.query_tokens:
            raise SourceError(
                f"{source.name} says itself how queries are encoded: leave out --query-model, or give a "
                "checkpoint of one encoder"
            )
    return _paired(one, other)


def _paired(documents: Source, queries: Source) -> Source:
    if parts := documents.tokenizer.differences(queries.tokenizer):
        raise SourceError(
            f"documents and queries have tokenizers that differ ({', '.join(parts)}), so the words of one are not "
            "those of the other: use two encoders of one tokenizer"
        )
    kept = documents.shape.max_active_tokens, queries.shape.max_active_tokens
    if kept[0] != kept[1]:
        raise SourceError(
            f"the encoders of documents and queries keep {kept[0]} and {kept[1]} tokens (max_active_dims in "
            "config_sentence_transformers.json): make both equal, or leave both out; a request says top_k"
        )
    return replace(
        documents,
        shape=replace(documents.shape, prompt_query=queries.shape.prompt_query),
        max_length_query=queries.max_length_query,
        queries=queries,
    )


def _read(directory: Directory, shape: Shape, name: str, choices: Choices, revision: str) -> Source:
    """One encoder of the checkpoint in `directory`, without fixed weights for queries."""
    config = shape.encoder.settings("config.json")
    try:
        plan = layout_of_config(config, shape.head)
    except FieldError as error:
        raise SourceError(str(error)) from error
    tokenizer = read_tokenizer(shape.encoder, config)
    if tokenizer.size > plan.vocabulary_size:
        raise SourceError(
            f"its tokenizer has {tokenizer.size} tokens, its weights are for {plan.vocabulary_size}: "
            "they are of different models; use the files that belong together"
        )
    stored = open_weights(shape.encoder)
    if shape.own_weight:
        stored |= _own_weight(shape.encoder, shape.own_weight, plan)
    tensors = _checked(stored, plan, bool(config.get("tie_word_embeddings", True)))
    shape = replace(
        shape,
        kind=shape.kind + _wrapped(tensors, plan),
        activation=choices.activation or shape.activation,
        pooling=choices.pooling or shape.pooling,
    )
    said = tokenizer.max_length or USUAL_LENGTH
    usual = min(shape.max_length or (said if shape.trusts_tokenizer else min(said, USUAL_LENGTH)), plan.positions)
    lengths = [choices.max_length_document or usual, choices.max_length_query or usual]
    if max(lengths) > plan.positions:
        raise SourceError(
            f"a length of {max(lengths)} tokens was asked for, the model has positions for {plan.positions}: "
            "lower --max-length-document or --max-length-query"
        )
    return Source(
        name=name,
        revision=revision,
        directory=directory,
        shape=shape,
        layout=plan,
        tensors=tensors,
        tokenizer=tokenizer,
        query_tokens=None,
        max_length_document=lengths[0],
        max_length_query=lengths[1],
    )


def _own_weight(directory: Directory, name: str, plan: Layout) -> dict[str, Tensor]:
    """The head in the file `name`, whose tensors are called weight and bias there."""
    path = directory.file(name)
    assert path is not None
    return {f"{plan.layers.own_weight}.{tensor.name}": tensor for tensor in read_file(path)}


def _checked(stored: Mapping[str, Tensor], plan: Layout, tied: bool) -> dict[str, Tensor]:
    """`stored` by the names of transformers; what has no part in the logits is left out."""
    named = {_modern(name): tensor for name, tensor in stored.items()}
    for pattern, name in plan.older.renames:
        named = {re.sub(pattern, name, old): tensor for old, tensor in named.items()}
    named = dict(_unpacked(named, plan.older.packed))
    if plan.embedding not in named:
        # A class around the masked language model puts a prefix before every name.
        wrapped = [name for name in named if name.endswith(f".{plan.embedding}")]
        prefix = wrapped[0].removesuffix(plan.embedding) if len(wrapped) == 1 else ""
        named = {name.removeprefix(prefix): tensor for name, tensor in named.items()}
    vocabulary, size = plan.vocabulary_size, plan.layers.embedding_size
    expected = {plan.embedding: (vocabulary, size), **plan.layers.body}
    missing = sorted(expected.keys() - named.keys())
    if missing:
        raise SourceError(
            f"its weights lack {len(missing)} of {plan.architecture}, such as {missing[0]}: they are of another "
            "architecture than config.json says, or of an encoder without a language model head: no sparse encoder"
        )
    if plan.decoder and not tied and plan.decoder not in named:
        raise SourceError(
            f"its weights lack the decoder {plan.decoder}, and config.json says that it is not the input matrix "
            "(tie_word_embeddings): use a complete checkpoint"
        )
    if plan.biases and not any(name in named for name in plan.biases):
        raise SourceError(f"its weights lack {plan.biases[0]}: use a complete checkpoint")
    if plan.decoder:
        expected[plan.decoder] = (vocabulary, size)
    expected |= dict.fromkeys(plan.biases, (vocabulary,))
    unknown = sorted(name for name in named.keys() - expected.keys() if not _UNUSED.search(name))
    if unknown:
        raise SourceError(
            f"its weights hold {len(unknown)} that a {plan.architecture} does not have, such as {unknown[0][:100]}: "
            "what they do is not known, so its vectors would be wrong"
        )
    tensors = {name: named[name] for name in expected if name in named}
    for name, tensor in tensors.items():
        if tensor.shape != expected[name]:
            raise SourceError(
                f"{name} has the shape {list(tensor.shape)}, by config.json it is {list(expected[name])}: "
                "they are of different models; use the files that belong together"
            )
    return tensors


def _unpacked(named: Mapping[str, Tensor], packed: Mapping[str, tuple[str, ...]]) -> Iterator[tuple[str, Tensor]]:
    """`named`, with several tensors in place of one that holds the rows of all."""
    for name, tensor in named.items():
        part = next((part for part in packed if part in name), None)
        if part is None:
            yield name, tensor
        else:
            shares = packed[part]
            for number, share in enumerate(shares):
                yield name.replace(part, share), tensor.share(number, len(shares))


def _modern(name: str) -> str:
    """Names of the time when norms had gamma and beta."""
    head, _, last = name.rpartition(".")
    return f"{head}.{ {'gamma': 'weight', 'beta': 'bias'}.get(last, last) }" if head else name


def _wrapped(tensors: Mapping[str, Tensor], plan: Layout) -> str:
    stored = tensors[plan.embedding].name
    return (
        "" if stored == plan.embedding else f", in a wrapper ({stored.removesuffix(plan.embedding)!r} before each name)"
    )
