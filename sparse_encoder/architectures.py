"""The table of architectures: what a masked language model that can be served is made of, told once.

A row says how `config.json` is read and by which names transformers knows the weights. What is asked of it is
`sparse_encoder.layouts`: conversion checks a checkpoint by it, the serving graph and the torch reference find weights,
head and activations by it. Another architecture of the same layers is a row here, and a case in
`tests/app/encoders/test_architectures.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from sparse_encoder import older
from sparse_encoder.fields import MOST_LAYERS, FieldError, Fields
from sparse_encoder.layers import (
    GLOBAL,
    LOCAL,
    RELATIVE_BUCKETS,
    BertShape,
    Disentangled,
    Layers,
    ModernBertShape,
)
from sparse_encoder.older import Older
from sparse_encoder.rotations import gte_rotation, modernbert_rotations

#: As `config.json` names it; the weights have the names that transformers gives them.
Architecture = Literal[
    "BertForMaskedLM",
    "CamembertForMaskedLM",
    "DebertaV2ForMaskedLM",
    "DistilBertForMaskedLM",
    "ElectraForMaskedLM",
    "GteForMaskedLM",
    "LexicalBertForMaskedLM",
    "MPNetForMaskedLM",
    "ModernBertForMaskedLM",
    "RobertaForMaskedLM",
    "XLMRobertaForMaskedLM",
    "XLMRobertaModel",
]
#: What it weighs: every token of the vocabulary, or the tokens of the text themselves.
Head = Literal["vocabulary", "own"]
Read = tuple[dict[str, Any], Layers]  #: the fields of `config.json`, completed, and what they say


def _bert_config(fields: Fields, pad: int = 0, vocabulary: int = 30_522, types: int | None = 2) -> dict[str, Any]:
    """Of BERT and its relatives. `types`: of tokens, where nothing is said; None where the architecture has none."""
    return {
        "vocab_size": fields.size("vocab_size", vocabulary),
        "hidden_size": fields.size("hidden_size", 768),
        "num_hidden_layers": fields.size("num_hidden_layers", 12, MOST_LAYERS),
        "num_attention_heads": fields.size("num_attention_heads", 12),
        "intermediate_size": fields.size("intermediate_size", 3072),
        "hidden_act": fields.activation("hidden_act"),
        "max_position_embeddings": fields.size("max_position_embeddings", 512),
        "type_vocab_size": 0 if types is None else fields.count("type_vocab_size", types),
        "layer_norm_eps": fields.number("layer_norm_eps", 1e-12),
        "pad_token_id": fields.token("pad_token_id", pad),
        "position_embedding_type": "absolute",
    }


def _bert_sizes(config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "hidden_size": config["hidden_size"],
        "embedding_size": config.get("embedding_size", config["hidden_size"]),
        "intermediate_size": config["intermediate_size"],
        "heads": config["num_attention_heads"],
        "layers": config["num_hidden_layers"],
        "epsilon": config["layer_norm_eps"],
        "activation": config["hidden_act"],
        "positions": config["max_position_embeddings"],
        "token_types": config["type_vocab_size"],
    }


def _bert(fields: Fields) -> Read:
    config = _bert_config(fields)
    return config, BertShape(**_bert_sizes(config), head_activation=config["hidden_act"])


def _lexical_bert(fields: Fields) -> Read:
    """Only the part that it shares with BERT; the rest is `sparse_encoder.modeling_lexical_bert`'s."""
    config = _bert_config(fields)
    return config, BertShape(
        **_bert_sizes(config),
        head_dense="head.dense",
        head_norm="head.LayerNorm",
        head_activation="gelu",
        decoders=("decoder.weight",),
        decoder_biases=("decoder.bias",),
    )


def _roberta(fields: Fields, vocabulary: int = 50_265) -> Read:
    config = _bert_config(fields, 1, vocabulary)
    return config, BertShape(
        **_bert_sizes(config),
        first_position=config["pad_token_id"] + 1,  # positions count from behind the row of the padding
        embeddings="roberta.embeddings",
        layer="roberta.encoder.layer",
        head_dense="lm_head.dense",
        head_norm="lm_head.layer_norm",
        head_activation="gelu",
        decoders=("lm_head.decoder.weight", "roberta.embeddings.word_embeddings.weight"),
        decoder_biases=("lm_head.decoder.bias", "lm_head.bias"),
    )


def _bge_m3(fields: Fields) -> Read:
    """The sparse part of BGE-M3 (Chen et al. 2024, arXiv:2402.03216)."""
    config = _bert_config(fields, 1, 250_002)
    return config, BertShape(
        **_bert_sizes(config),
        first_position=config["pad_token_id"] + 1,
        embeddings="embeddings",
        layer="encoder.layer",
        head_activation="relu",
        own_weight="sparse_linear",
    )


def _mpnet(fields: Fields) -> Read:
    config = _bert_config(fields, 1, 30_527, None)
    config["relative_attention_num_buckets"] = fields.exactly("relative_attention_num_buckets", RELATIVE_BUCKETS)
    return config, BertShape(
        **_bert_sizes(config),
        first_position=2,  # whatever config.json says of the padding
        embeddings="mpnet.embeddings",
        layer="mpnet.encoder.layer",
        query="attention.attn.q",
        key="attention.attn.k",
        value="attention.attn.v",
        attended="attention.attn.o",
        attended_norm="attention.LayerNorm",
        relative_bias="mpnet.encoder.relative_attention_bias",
        head_dense="lm_head.dense",
        head_norm="lm_head.layer_norm",
        head_activation="gelu",
        decoders=("lm_head.decoder.weight", "mpnet.embeddings.word_embeddings.weight"),
        decoder_biases=("lm_head.decoder.bias", "lm_head.bias"),
    )


def _gte(fields: Fields) -> Read:
    """GTE (Zhang et al. 2024, arXiv:2407.19669): of transformers, and of the model type `new` before."""
    fields.choice("layer_norm_type", "layer_norm", ("layer_norm",))
    if fields.flag("logn_attention_scale", False):
        raise FieldError("config.json has logn_attention_scale, which this software does not compute: use another")
    config = _bert_config(fields, 1, 250_048, 1)
    del config["position_embedding_type"]
    config["max_position_embeddings"] = fields.size("max_position_embeddings", 8192)
    head_size = config["hidden_size"] // config["num_attention_heads"]
    config["rope_parameters"], rotation = gte_rotation(fields, head_size, config["max_position_embeddings"])
    return config, BertShape(
        **{**_bert_sizes(config), "positions": 0},
        rotation=rotation,
        embeddings="gte.embeddings",
        layer="gte.layers",
        query="self_attn.q_proj",
        key="self_attn.k_proj",
        value="self_attn.v_proj",
        attended="self_attn.o_proj",
        attended_norm="post_attention_layernorm",
        wide="mlp.up_proj",
        gate="mlp.gate_proj",
        narrow="mlp.down_proj",
        narrow_norm="post_mlp_layernorm",
        head_dense="lm_head.dense",
        head_norm="lm_head.layer_norm",
        head_activation="gelu",
        decoders=("lm_head.decoder.weight", "gte.embeddings.word_embeddings.weight"),
        decoder_biases=("lm_head.decoder.bias",),
    )


def _deberta_v2(fields: Fields) -> Read:
    """DeBERTa v2 and v3 (He et al. 2021, arXiv:2006.03654 and 2111.09543), without the convolution that some have."""
    config = _bert_config(fields, 0, 128_100, 0)
    del config["position_embedding_type"]
    size, longest = config["hidden_size"], config["max_position_embeddings"]
    config["layer_norm_eps"] = fields.number("layer_norm_eps", 1e-7)
    for name, only in (("conv_kernel_size", 0), ("embedding_size", size)):
        fields.exactly(name, only)
    fields.exactly("attention_head_size", size // config["num_attention_heads"])
    kinds = fields.kinds("pos_att_type", ("c2p", "p2c"))
    if not kinds or not fields.flag("relative_attention", False):
        raise FieldError(
            "config.json has no relative_attention, or no pos_att_type for it, and this software computes DeBERTa with "
            "both: use a checkpoint of that kind"
        )
    buckets, reach = (fields.of_any("position_buckets", -1), fields.of_any("max_relative_positions", -1))
    config |= {
        "relative_attention": True,
        "pos_att_type": kinds,
        "position_buckets": buckets,
        "max_relative_positions": reach,
        "norm_rel_ebd": fields.choice("norm_rel_ebd", "none", ("none", "layer_norm")),
        "share_att_key": fields.flag("share_att_key", False),
        "position_biased_input": fields.flag("position_biased_input", True),
        "legacy": True,  # the head that `older` makes of the other one
    }
    key, query = "attention.self.key_proj", "attention.self.query_proj"
    shared = config["share_att_key"]
    return config, BertShape(
        **{**_bert_sizes(config), "positions": longest if config["position_biased_input"] else 0},
        embeddings="deberta.embeddings",
        layer="deberta.encoder.layer",
        query=query,
        key=key,
        value="attention.self.value_proj",
        disentangled=Disentangled(
            embeddings="deberta.encoder.rel_embeddings",
            norm="deberta.encoder.LayerNorm" if config["norm_rel_ebd"] == "layer_norm" else None,
            key=(key if shared else "attention.self.pos_key_proj") if "c2p" in kinds else None,
            query=(query if shared else "attention.self.pos_query_proj") if "p2c" in kinds else None,
            shared=shared,
            buckets=max(buckets, 0),
            reach=reach if reach > 0 else longest,
            positions=longest,
        ),
        head_activation=config["hidden_act"],
        decoders=("cls.predictions.decoder.weight", "deberta.embeddings.word_embeddings.weight"),
    )


def _electra(fields: Fields) -> Read:
    config = _bert_config(fields) | {
        "hidden_size": fields.size("hidden_size", 256),
        "num_attention_heads": fields.size("num_attention_heads", 4),
        "intermediate_size": fields.size("intermediate_size", 1024),
        "embedding_size": fields.size("embedding_size", 128),
    }
    return config, BertShape(
        **_bert_sizes(config),
        embeddings="electra.embeddings",
        layer="electra.encoder.layer",
        project="electra.embeddings_project" if config["embedding_size"] != config["hidden_size"] else None,
        head_dense="generator_predictions.dense",
        head_norm="generator_predictions.LayerNorm",
        head_activation="gelu",
        decoders=("generator_lm_head.weight", "electra.embeddings.word_embeddings.weight"),
        decoder_biases=("generator_lm_head.bias",),
    )


def _distilbert(fields: Fields) -> Read:
    config: dict[str, Any] = {
        "vocab_size": fields.size("vocab_size", 30_522),
        "dim": fields.size("dim", 768),
        "n_layers": fields.size("n_layers", 6, MOST_LAYERS),
        "n_heads": fields.size("n_heads", 12),
        "hidden_dim": fields.size("hidden_dim", 3072),
        "activation": fields.activation("activation"),
        "max_position_embeddings": fields.size("max_position_embeddings", 512),
        "pad_token_id": fields.token("pad_token_id", 0),
        "sinusoidal_pos_embds": False,  # they are stored like others
    }
    return config, BertShape(
        hidden_size=config["dim"],
        embedding_size=config["dim"],
        intermediate_size=config["hidden_dim"],
        heads=config["n_heads"],
        layers=config["n_layers"],
        epsilon=1e-12,
        activation=config["activation"],
        positions=config["max_position_embeddings"],
        token_types=0,
        embeddings="distilbert.embeddings",
        layer="distilbert.transformer.layer",
        query="attention.q_lin",
        key="attention.k_lin",
        value="attention.v_lin",
        attended="attention.out_lin",
        attended_norm="sa_layer_norm",
        wide="ffn.lin1",
        narrow="ffn.lin2",
        narrow_norm="output_layer_norm",
        head_dense="vocab_transform",
        head_norm="vocab_layer_norm",
        head_activation=config["activation"],
        decoders=("vocab_projector.weight", "distilbert.embeddings.word_embeddings.weight"),
        decoder_biases=("vocab_projector.bias",),
    )


def _modernbert(fields: Fields) -> Read:
    kinds, ropes = _attention_kinds(fields), modernbert_rotations(fields)
    config: dict[str, Any] = {
        "vocab_size": fields.size("vocab_size", 50_368),
        "hidden_size": fields.size("hidden_size", 768),
        "num_hidden_layers": len(kinds),
        "num_attention_heads": fields.size("num_attention_heads", 12),
        "intermediate_size": fields.size("intermediate_size", 1152),
        "hidden_activation": fields.activation("hidden_activation"),
        "classifier_activation": fields.activation("classifier_activation"),
        "max_position_embeddings": fields.size("max_position_embeddings", 8192),
        "norm_eps": fields.number("norm_eps", 1e-5),
        "norm_bias": fields.flag("norm_bias", False),
        "attention_bias": fields.flag("attention_bias", False),
        "mlp_bias": fields.flag("mlp_bias", False),
        "classifier_bias": fields.flag("classifier_bias", False),
        "decoder_bias": True,  # what is never emitted is closed in it
        "local_attention": fields.size("local_attention", 128),
        "pad_token_id": fields.token("pad_token_id", 50_283),
        "layer_types": list(kinds),
        "rope_parameters": {kind: {"rope_type": "default", "rope_theta": theta} for kind, theta in ropes.items()},
    }
    return config, ModernBertShape(
        hidden_size=config["hidden_size"],
        intermediate_size=config["intermediate_size"],
        heads=config["num_attention_heads"],
        epsilon=config["norm_eps"],
        activation=config["hidden_activation"],
        head_activation=config["classifier_activation"],
        window=config["local_attention"] // 2,
        kinds=kinds,
        theta=ropes,
        attention_bias=config["attention_bias"],
        mlp_bias=config["mlp_bias"],
        norm_bias=config["norm_bias"],
        head_bias=config["classifier_bias"],
    )


def _attention_kinds(fields: Fields) -> tuple[str, ...]:
    """Of each layer, which positions it sees: from the form of transformers 5 or the one before."""
    layers = fields.size("num_hidden_layers", 22, MOST_LAYERS)
    kinds = fields.items("layer_types")
    if not kinds:
        every = fields.size("global_attn_every_n_layers", 3)
        kinds = [LOCAL if number % every else GLOBAL for number in range(layers)]
    if len(kinds) != layers or any(kind not in (GLOBAL, LOCAL) for kind in kinds):
        raise FieldError(f"config.json must name a kind of attention for each of its {layers} layers: repair the file")
    return tuple(kinds)


@dataclass(frozen=True, slots=True)
class Row:
    model_type: str  #: in `config.json`
    read: Callable[[Fields], Read]
    own_code: bool = False  #: its class is ours, and only training makes it
    head: Head = "vocabulary"
    position_type: str = "absolute"  #: of `position_embedding_type`, where that is said
    older: Older = older.NONE


ARCHITECTURES: Mapping[Architecture, Row] = {
    "BertForMaskedLM": Row("bert", _bert),
    "CamembertForMaskedLM": Row("camembert", lambda fields: _roberta(fields, 30_522)),
    "DebertaV2ForMaskedLM": Row("deberta-v2", _deberta_v2, older=older.DEBERTA_V2),
    "DistilBertForMaskedLM": Row("distilbert", _distilbert),
    "ElectraForMaskedLM": Row("electra", _electra),
    "GteForMaskedLM": Row(
        "gte",
        _gte,
        position_type="rope",
        older=older.GTE,
    ),
    "LexicalBertForMaskedLM": Row("lexical_bert", _lexical_bert, own_code=True),
    "MPNetForMaskedLM": Row("mpnet", _mpnet),
    "ModernBertForMaskedLM": Row("modernbert", _modernbert),
    "RobertaForMaskedLM": Row("roberta", _roberta),
    "XLMRobertaForMaskedLM": Row("xlm-roberta", lambda fields: _roberta(fields, 250_002)),
    "XLMRobertaModel": Row("xlm-roberta", _bge_m3, head="own"),
}
