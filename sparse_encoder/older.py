"""Forms of checkpoints from before transformers knew their architecture: other names of weights, or several in one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from sparse_encoder.fields import Fields


@dataclass(frozen=True, slots=True, kw_only=True)
class Older:
    """What of an older form differs from that of transformers."""

    model_types: tuple[str, ...] = ()
    flag: str | None = None  #: in `config.json`, false for the older form; None: the names alone tell it
    renames: tuple[tuple[str, str], ...] = ()  #: a pattern in the name of a weight, and what stands for it
    #: A part of a name, and of the names of those whose rows lie in it one after the other.
    packed: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def is_it(self, fields: Fields) -> bool:
        """Whether a checkpoint with these `fields` may be of this form."""
        return self.flag is None or not fields.flag(self.flag, True)


NONE = Older()
#: The model type `new`, whose class came with the checkpoint.
GTE = Older(
    model_types=("new",),
    renames=(
        (r"^new\.", "gte."),
        (r"\.encoder\.layer\.", ".layers."),
        (r"\.attention\.(qkv|o)_proj\.", r".self_attn.\1_proj."),
        (r"\.attn_ln\.", ".post_attention_layernorm."),
        (r"\.mlp_ln\.", ".post_mlp_layernorm."),
        (r"^lm_head\.norm\.", "lm_head.layer_norm."),
    ),
    packed={
        ".self_attn.qkv_proj.": (".self_attn.q_proj.", ".self_attn.k_proj.", ".self_attn.v_proj."),
        ".mlp.up_gate_proj.": (".mlp.up_proj.", ".mlp.gate_proj."),
    },
)
#: The head of the authors' own code, which transformers has where `legacy` is false. It is the same by other names.
DEBERTA_V2 = Older(
    flag="legacy",
    renames=(
        (r"^lm_predictions\.lm_head\.(dense|LayerNorm)\.", r"cls.predictions.transform.\1."),
        (r"^lm_predictions\.lm_head\.bias$", "cls.predictions.bias"),
    ),
)
