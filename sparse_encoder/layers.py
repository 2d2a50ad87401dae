"""The two kinds of layers that are computed, with their heads: sizes, names and shapes of their weights.

Heads over the vocabulary are `norm(activation(dense(states)))`. One that weighs own tokens is `relu(linear(state))`: a
number for each position, which is what its token weighs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

WeightShapes = dict[str, tuple[int, ...]]
RELATIVE_BUCKETS, RELATIVE_REACH = 32, 128  #: of distances, and the longest that has a bucket of its own
GLOBAL, LOCAL = "full_attention", "sliding_attention"  #: which positions a layer of ModernBERT sees


def _linear(name: str, outputs: int, inputs: int, bias: bool = True) -> WeightShapes:
    return {f"{name}.weight": (outputs, inputs)} | ({f"{name}.bias": (outputs,)} if bias else {})


def _norm(name: str, size: int, bias: bool = True) -> WeightShapes:
    shape: tuple[int, ...] = (size,)
    return {f"{name}.weight": shape} | ({f"{name}.bias": shape} if bias else {})


@dataclass(frozen=True, slots=True)
class Rotation:
    """Rotary positions: the base of their frequencies, and what each frequency is divided by, if it is."""

    theta: float
    divisors: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Disentangled:
    """Attention with scores between words and distances (DeBERTa): `key` of distances by the query of a word, `query`
    of distances by the key of a word; None where there is none."""

    embeddings: str  #: of distances, [2 span, hidden]
    norm: str | None  #: of these
    key: str | None  #: in each layer
    query: str | None
    shared: bool  #: whether `key` and `query` are those of words
    buckets: int  #: far distances share one by their logarithm; 0: none does
    reach: int  #: the longest distance that differs from longer ones
    positions: int  #: of the longest text

    @property
    def span(self) -> int:
        return self.buckets or self.reach

    @property
    def scores(self) -> int:
        """That are added up, those between words included."""
        return 1 + sum(part is not None for part in (self.key, self.query))

    def shapes(self, size: int) -> WeightShapes:
        shapes: WeightShapes = {f"{self.embeddings}.weight": (2 * self.span, size)}
        return shapes | (_norm(self.norm, size) if self.norm else {})


@dataclass(frozen=True, slots=True, kw_only=True)
class BertShape:
    """Layers as BERT has them: their sizes and the names of their weights."""

    hidden_size: int
    embedding_size: int
    intermediate_size: int
    heads: int
    layers: int
    epsilon: float
    activation: str
    positions: int  #: rows of the position table; 0: there is none
    first_position: int = 0  #: the row that the first token gets
    token_types: int  #: rows of the table of token types; 0 = none
    embeddings: str = "bert.embeddings"
    layer: str = "bert.encoder.layer"
    query: str = "attention.self.query"
    key: str = "attention.self.key"
    value: str = "attention.self.value"
    attended: str = "attention.output.dense"
    attended_norm: str = "attention.output.LayerNorm"
    wide: str = "intermediate.dense"
    gate: str | None = None  #: beside `wide`: what comes out of both is multiplied, and neither has a bias
    narrow: str = "output.dense"
    narrow_norm: str = "output.LayerNorm"
    rotation: Rotation | None = None  #: of queries and keys
    disentangled: Disentangled | None = None
    relative_bias: str | None = None  #: of attention, by the bucket of a distance; one table for all layers
    project: str | None = None  #: from the size of the embeddings to that of the layers
    head_dense: str = "cls.predictions.transform.dense"
    head_norm: str = "cls.predictions.transform.LayerNorm"
    head_activation: str
    own_weight: str | None = None  #: the head that weighs own tokens; then there is none over the vocabulary
    #: The output matrix; one that is tied to the input matrix is not in the file a second time.
    decoders: tuple[str, ...] = ("cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight")
    decoder_biases: tuple[str, ...] = ("cls.predictions.decoder.bias", "cls.predictions.bias")  #: the first one counts

    @property
    def words(self) -> str:
        """The input matrix [vocabulary, embedding]."""
        return f"{self.embeddings}.word_embeddings.weight"

    @property
    def body(self) -> WeightShapes:
        """Every weight but the input and output matrices and the output bias."""
        size, embedding, prefix = self.hidden_size, self.embedding_size, self.embeddings
        shapes: WeightShapes = {}
        if self.positions:
            shapes[f"{prefix}.position_embeddings.weight"] = (self.positions, embedding)
        if self.relative_bias:
            shapes[f"{self.relative_bias}.weight"] = (RELATIVE_BUCKETS, self.heads)
        of_distances: list[str | None] = []
        if apart := self.disentangled:
            shapes |= apart.shapes(size)
            of_distances = [] if apart.shared else [apart.key, apart.query]
        if self.token_types:
            shapes[f"{prefix}.token_type_embeddings.weight"] = (self.token_types, embedding)
        shapes |= _norm(f"{prefix}.LayerNorm", embedding)
        if self.project:
            shapes |= _linear(self.project, size, embedding)
        for number in range(self.layers):
            layer = f"{self.layer}.{number}"
            for part in filter(None, (self.query, self.key, self.value, self.attended, *of_distances)):
                shapes |= _linear(f"{layer}.{part}", size, size)
            shapes |= _norm(f"{layer}.{self.attended_norm}", size)
            for wide in filter(None, (self.wide, self.gate)):
                shapes |= _linear(f"{layer}.{wide}", self.intermediate_size, size, bias=not self.gate)
            shapes |= _linear(f"{layer}.{self.narrow}", size, self.intermediate_size)
            shapes |= _norm(f"{layer}.{self.narrow_norm}", size)
        if self.own_weight:
            return shapes | _linear(self.own_weight, 1, size)
        return shapes | _linear(self.head_dense, embedding, size) | _norm(self.head_norm, embedding)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModernBertShape:
    """Layers as ModernBERT has them."""

    hidden_size: int
    intermediate_size: int
    heads: int
    epsilon: float
    activation: str
    window: int  #: tokens that a local layer sees to each side
    kinds: tuple[str, ...]  #: of each layer: GLOBAL or LOCAL
    theta: Mapping[str, float]  #: the base of the rotation, by the kind of layer
    attention_bias: bool
    mlp_bias: bool
    norm_bias: bool
    head_bias: bool
    first_position: int = 0
    words: str = "model.embeddings.tok_embeddings.weight"
    embedding_norm: str = "model.embeddings.norm"
    layer: str = "model.layers"
    attention_norm: str = "attn_norm"  #: but for the first layer, whose norm is that of the embeddings
    attention_in: str = "attn.Wqkv"
    attention_out: str = "attn.Wo"
    mlp_norm: str = "mlp_norm"
    mlp_in: str = "mlp.Wi"
    mlp_out: str = "mlp.Wo"
    final_norm: str = "model.final_norm"
    head_dense: str = "head.dense"
    head_norm: str = "head.norm"
    head_activation: str
    own_weight: None = None
    decoders: tuple[str, ...] = ("decoder.weight", "model.embeddings.tok_embeddings.weight")
    decoder_biases: tuple[str, ...] = ("decoder.bias",)

    @property
    def embedding_size(self) -> int:
        return self.hidden_size

    @property
    def body(self) -> WeightShapes:
        size, wide = self.hidden_size, self.intermediate_size
        shapes = _norm(self.embedding_norm, size, self.norm_bias)
        for number in range(len(self.kinds)):
            layer = f"{self.layer}.{number}"
            if number:
                shapes |= _norm(f"{layer}.{self.attention_norm}", size, self.norm_bias)
            shapes |= _linear(f"{layer}.{self.attention_in}", 3 * size, size, self.attention_bias)
            shapes |= _linear(f"{layer}.{self.attention_out}", size, size, self.attention_bias)
            shapes |= _norm(f"{layer}.{self.mlp_norm}", size, self.norm_bias)
            shapes |= _linear(f"{layer}.{self.mlp_in}", 2 * wide, size, self.mlp_bias)
            shapes |= _linear(f"{layer}.{self.mlp_out}", size, wide, self.mlp_bias)
        shapes |= _norm(self.final_norm, size, self.norm_bias)
        return (
            shapes | _linear(self.head_dense, size, size, self.head_bias) | _norm(self.head_norm, size, self.norm_bias)
        )


Layers = BertShape | ModernBertShape
