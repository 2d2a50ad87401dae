"""The masked language models that can be served: the fields of their config and the names and shapes of their weights.

Names are those of transformers, which is what an artifact holds; `layout` is the only place that knows them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sparse_encoder.artifact import Architecture
from sparse_encoder.checkpoint.config import MOST_LAYERS, Config
from sparse_encoder.checkpoint.directory import SourceError

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """What a checkpoint of one architecture and config consists of."""

    architecture: Architecture
    config: dict[str, Any]  #: complete: every field that computing the model needs
    embedding: str  #: the name of the matrix [vocabulary, size] of the input, and of the output where both are tied
    decoder: str  #: the name of the output matrix where it is one of its own
    biases: tuple[
        str, ...
    ]  #: names of the output bias [vocabulary]; transformers keeps some twice, the last one counts
    body: Shapes  #: all other weights
    positions: int  #: tokens of the longest text
    pad_is_position: bool = False  #: positions are counted from `pad_token_id` on, so it stays as it is

    @property
    def vocabulary_size(self) -> int:
        return int(self.config["vocab_size"])

    @property
    def embedding_size(self) -> int:
        return int(self.config.get("embedding_size") or self.config.get("dim") or self.config["hidden_size"])


def layout(fields: Mapping[str, Any]) -> Layout:
    """The layout for a `config.json` of transformers.

    :raises SourceError: if it is of an architecture that is not served, or a field is wrong.
    """
    kind = fields.get("model_type")
    make = _MAKERS.get(kind) if isinstance(kind, str) else None
    if make is None:
        raise SourceError(
            f"config.json has model_type {str(kind)[:80]!r}, served are {', '.join(_MAKERS)}: use one of those"
        )
    config = Config(fields)
    config.choice("position_embedding_type", "absolute", ("absolute",))
    made = make(config)
    for size, heads in (("hidden_size", "num_attention_heads"), ("dim", "n_heads")):
        if size in made.config and made.config[size] % made.config[heads]:
            raise SourceError(
                f"config.json has {size} {made.config[size]}, no multiple of {heads} {made.config[heads]}: repair it"
            )
    if made.positions < 3:
        raise SourceError(f"config.json leaves {made.positions} positions for a text: repair max_position_embeddings")
    return made


def _linear(name: str, outputs: int, inputs: int, bias: bool = True) -> Shapes:
    return {f"{name}.weight": (outputs, inputs)} | ({f"{name}.bias": (outputs,)} if bias else {})


def _norm(name: str, size: int, bias: bool = True) -> Shapes:
    shape: tuple[int, ...] = (size,)
    return {f"{name}.weight": shape} | ({f"{name}.bias": shape} if bias else {})


def _encoder_fields(config: Config, pad: int, vocabulary: int, positions: int) -> dict[str, Any]:
    """Of BERT and its relatives."""
    return {
        "vocab_size": config.size("vocab_size", vocabulary),
        "hidden_size": config.size("hidden_size", 768),
        "num_hidden_layers": config.size("num_hidden_layers", 12, MOST_LAYERS),
        "num_attention_heads": config.size("num_attention_heads", 12),
        "intermediate_size": config.size("intermediate_size", 3072),
        "hidden_act": config.activation("hidden_act"),
        "max_position_embeddings": config.size("max_position_embeddings", positions),
        "type_vocab_size": config.size("type_vocab_size", 2),
        "layer_norm_eps": config.number("layer_norm_eps", 1e-12),
        "pad_token_id": config.token("pad_token_id", pad),
        "position_embedding_type": "absolute",
    }


def _encoder_body(prefix: str, fields: Mapping[str, Any]) -> Shapes:
    """Of BERT and its relatives, without word embeddings and head."""
    size, wide = fields["hidden_size"], fields["intermediate_size"]
    embedding = fields.get("embedding_size", size)
    shapes: Shapes = {
        f"{prefix}.embeddings.position_embeddings.weight": (fields["max_position_embeddings"], embedding),
        f"{prefix}.embeddings.token_type_embeddings.weight": (fields["type_vocab_size"], embedding),
    }
    shapes |= _norm(f"{prefix}.embeddings.LayerNorm", embedding)
    for number in range(fields["num_hidden_layers"]):
        layer = f"{prefix}.encoder.layer.{number}"
        for part in ("query", "key", "value"):
            shapes |= _linear(f"{layer}.attention.self.{part}", size, size)
        shapes |= _linear(f"{layer}.attention.output.dense", size, size)
        shapes |= _norm(f"{layer}.attention.output.LayerNorm", size)
        shapes |= _linear(f"{layer}.intermediate.dense", wide, size)
        shapes |= _linear(f"{layer}.output.dense", size, wide)
        shapes |= _norm(f"{layer}.output.LayerNorm", size)
    return shapes


def _bert(config: Config) -> Layout:
    fields = {"model_type": "bert", **_encoder_fields(config, 0, 30_522, 512)}
    size, head = fields["hidden_size"], "cls.predictions.transform"
    return Layout(
        architecture="BertForMaskedLM",
        config=fields,
        embedding="bert.embeddings.word_embeddings.weight",
        decoder="cls.predictions.decoder.weight",
        biases=("cls.predictions.bias", "cls.predictions.decoder.bias"),
        body=_encoder_body("bert", fields) | _linear(f"{head}.dense", size, size) | _norm(f"{head}.LayerNorm", size),
        positions=fields["max_position_embeddings"],
    )


def _roberta(architecture: Architecture, model_type: str, vocabulary: int) -> Callable[[Config], Layout]:
    def make(config: Config) -> Layout:
        fields = {"model_type": model_type, **_encoder_fields(config, 1, vocabulary, 512)}
        size = fields["hidden_size"]
        # Positions count from behind the row of the padding.
        positions = fields["max_position_embeddings"] - fields["pad_token_id"] - 1
        return Layout(
            architecture=architecture,
            config=fields,
            embedding="roberta.embeddings.word_embeddings.weight",
            decoder="lm_head.decoder.weight",
            biases=("lm_head.bias", "lm_head.decoder.bias"),
            body=_encoder_body("roberta", fields)
            | _linear("lm_head.dense", size, size)
            | _norm("lm_head.layer_norm", size),
            positions=positions,
            pad_is_position=True,
        )

    return make


def _electra(config: Config) -> Layout:
    fields = {"model_type": "electra", **_encoder_fields(config, 0, 30_522, 512)}
    fields |= {
        "hidden_size": config.size("hidden_size", 256),
        "num_attention_heads": config.size("num_attention_heads", 4),
        "intermediate_size": config.size("intermediate_size", 1024),
        "embedding_size": config.size("embedding_size", 128),
    }
    size, embedding = fields["hidden_size"], fields["embedding_size"]
    body = _encoder_body("electra", fields)
    if embedding != size:
        body |= _linear("electra.embeddings_project", size, embedding)
    return Layout(
        architecture="ElectraForMaskedLM",
        config=fields,
        embedding="electra.embeddings.word_embeddings.weight",
        decoder="generator_lm_head.weight",
        biases=("generator_lm_head.bias",),
        body=body
        | _linear("generator_predictions.dense", embedding, size)
        | _norm("generator_predictions.LayerNorm", embedding),
        positions=fields["max_position_embeddings"],
    )


def _distilbert(config: Config) -> Layout:
    fields: dict[str, Any] = {
        "model_type": "distilbert",
        "vocab_size": config.size("vocab_size", 30_522),
        "dim": config.size("dim", 768),
        "n_layers": config.size("n_layers", 6, MOST_LAYERS),
        "n_heads": config.size("n_heads", 12),
        "hidden_dim": config.size("hidden_dim", 3072),
        "activation": config.activation("activation"),
        "max_position_embeddings": config.size("max_position_embeddings", 512),
        "pad_token_id": config.token("pad_token_id", 0),
        "sinusoidal_pos_embds": False,  # they are stored like others
    }
    size, wide = fields["dim"], fields["hidden_dim"]
    body: Shapes = {"distilbert.embeddings.position_embeddings.weight": (fields["max_position_embeddings"], size)}
    body |= _norm("distilbert.embeddings.LayerNorm", size)
    for number in range(fields["n_layers"]):
        layer = f"distilbert.transformer.layer.{number}"
        for part in ("q_lin", "k_lin", "v_lin", "out_lin"):
            body |= _linear(f"{layer}.attention.{part}", size, size)
        body |= _norm(f"{layer}.sa_layer_norm", size)
        body |= _linear(f"{layer}.ffn.lin1", wide, size) | _linear(f"{layer}.ffn.lin2", size, wide)
        body |= _norm(f"{layer}.output_layer_norm", size)
    return Layout(
        architecture="DistilBertForMaskedLM",
        config=fields,
        embedding="distilbert.embeddings.word_embeddings.weight",
        decoder="vocab_projector.weight",
        biases=("vocab_projector.bias",),
        body=body | _linear("vocab_transform", size, size) | _norm("vocab_layer_norm", size),
        positions=fields["max_position_embeddings"],
    )


def _modernbert(config: Config) -> Layout:
    fields: dict[str, Any] = {
        "model_type": "modernbert",
        "vocab_size": config.size("vocab_size", 50_368),
        "hidden_size": config.size("hidden_size", 768),
        "num_hidden_layers": config.size("num_hidden_layers", 22, MOST_LAYERS),
        "num_attention_heads": config.size("num_attention_heads", 12),
        "intermediate_size": config.size("intermediate_size", 1152),
        "hidden_activation": config.activation("hidden_activation"),
        "classifier_activation": config.activation("classifier_activation"),
        "max_position_embeddings": config.size("max_position_embeddings", 8192),
        "norm_eps": config.number("norm_eps", 1e-5),
        "norm_bias": config.flag("norm_bias", False),
        "attention_bias": config.flag("attention_bias", False),
        "mlp_bias": config.flag("mlp_bias", False),
        "classifier_bias": config.flag("classifier_bias", False),
        "decoder_bias": True,  # what is never emitted is closed in it
        "local_attention": config.size("local_attention", 128),
        "pad_token_id": config.token("pad_token_id", 50_283),
        **_attention_kinds(config),
    }
    size, wide = fields["hidden_size"], fields["intermediate_size"]
    norm_bias, attention_bias, mlp_bias = fields["norm_bias"], fields["attention_bias"], fields["mlp_bias"]
    body = _norm("model.embeddings.norm", size, norm_bias)
    for number in range(fields["num_hidden_layers"]):
        layer = f"model.layers.{number}"
        if number:  # the norm of the embeddings is that of the first layer
            body |= _norm(f"{layer}.attn_norm", size, norm_bias)
        body |= _linear(f"{layer}.attn.Wqkv", 3 * size, size, attention_bias)
        body |= _linear(f"{layer}.attn.Wo", size, size, attention_bias)
        body |= _norm(f"{layer}.mlp_norm", size, norm_bias)
        body |= _linear(f"{layer}.mlp.Wi", 2 * wide, size, mlp_bias)
        body |= _linear(f"{layer}.mlp.Wo", size, wide, mlp_bias)
    body |= _norm("model.final_norm", size, norm_bias)
    body |= _linear("head.dense", size, size, fields["classifier_bias"]) | _norm("head.norm", size, norm_bias)
    return Layout(
        architecture="ModernBertForMaskedLM",
        config=fields,
        embedding="model.embeddings.tok_embeddings.weight",
        decoder="decoder.weight",
        biases=("decoder.bias",) if config.flag("decoder_bias", True) else (),
        body=body,
        positions=fields["max_position_embeddings"],
    )


def _attention_kinds(config: Config) -> dict[str, Any]:
    """Which layers see the whole text, and how positions rotate: in the form of transformers 5, from either form."""
    kinds = ("full_attention", "sliding_attention")
    layers, every = config.size("num_hidden_layers", 22, MOST_LAYERS), config.size("global_attn_every_n_layers", 3)
    types = config.items("layer_types") or [kinds[bool(number % every)] for number in range(layers)]
    if len(types) != layers or any(kind not in kinds for kind in types):
        raise SourceError(f"config.json must name a kind of attention for each of its {layers} layers: repair the file")
    ropes = config.table("rope_parameters")
    if config.has("rope_scaling"):
        raise SourceError(
            "config.json has rope_scaling, which this software does not compute: use a checkpoint without"
        )
    parameters = {}
    for kind, legacy, default in zip(
        kinds, ("global_rope_theta", "local_rope_theta"), (160_000.0, 10_000.0), strict=True
    ):
        rope = Config(Config(ropes).table(kind))
        rope.choice("rope_type", "default", ("default",))
        parameters[kind] = {
            "rope_type": "default",
            "rope_theta": rope.number("rope_theta", config.number(legacy, default)),
        }
    return {"layer_types": types, "rope_parameters": parameters}


_MAKERS: Mapping[str, Callable[[Config], Layout]] = {
    "bert": _bert,
    "camembert": _roberta("CamembertForMaskedLM", "camembert", 30_522),
    "distilbert": _distilbert,
    "electra": _electra,
    "modernbert": _modernbert,
    "roberta": _roberta("RobertaForMaskedLM", "roberta", 50_265),
    "xlm-roberta": _roberta("XLMRobertaForMaskedLM", "xlm-roberta", 250_002),
}
