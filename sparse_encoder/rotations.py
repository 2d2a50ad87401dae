"""Rotary positions as `config.json` describes them: of ModernBERT and of GTE, in the forms of several years."""

from __future__ import annotations

from typing import Any

from sparse_encoder.fields import FieldError, Fields
from sparse_encoder.layers import GLOBAL, LOCAL, Rotation


def modernbert_rotations(fields: Fields) -> dict[str, float]:
    """The base of the rotation of each kind of layer: from either form.

    :raises FieldError: if they are scaled, which is not computed.
    """
    ropes = fields.table("rope_parameters")
    if fields.has("rope_scaling"):
        raise FieldError("config.json has rope_scaling, which this software does not compute: use a checkpoint without")
    bases = {}
    for kind, legacy, default in ((GLOBAL, "global_rope_theta", 160_000.0), (LOCAL, "local_rope_theta", 10_000.0)):
        rope = Fields(Fields(ropes).table(kind))
        rope.choice("rope_type", "default", ("default",))
        bases[kind] = rope.number("rope_theta", default) if rope.has("rope_theta") else fields.number(legacy, default)
    return bases


def gte_rotation(fields: Fields, head_size: int, positions: int) -> tuple[dict[str, Any], Rotation]:
    """`rope_parameters` as transformers reads them, and what they say.

    The model type `new` scales frequency i of n by a factor to the power of (i + 1) / n, its "ntk". transformers has a
    name for given divisors only.

    :raises FieldError: if it is scaled in another way.
    """
    stated = Fields(fields.table("rope_parameters"))
    kind = stated.choice("rope_type", "default", ("default", "longrope"))
    theta = (
        stated.number("rope_theta", 160_000.0) if stated.has("rope_theta") else fields.number("rope_theta", 10_000.0)
    )
    divisors = tuple(map(float, stated.items("short_factor"))) if kind == "longrope" else ()
    if fields.has("rope_scaling"):
        scaling = Fields(fields.table("rope_scaling"))
        scaling.choice("type", "ntk", ("ntk",))
        if scaling.has("mixed_b"):
            raise FieldError("config.json has a mixed_b in rope_scaling, which is not computed: use another checkpoint")
        factor, half = scaling.number("factor", 1.0), head_size // 2
        divisors = tuple(factor ** ((number + 1) / half) for number in range(half))
    if divisors and len(divisors) != head_size // 2:
        raise FieldError(f"config.json has {len(divisors)} divisors in rope_parameters, expected {head_size // 2}")
    parameters: dict[str, Any] = {"rope_type": "default", "rope_theta": theta}
    if divisors:
        parameters |= {
            "rope_type": "longrope",
            "short_factor": list(divisors),
            "long_factor": list(divisors),
            "attention_factor": 1.0,
            "factor": 1.0,
            "original_max_position_embeddings": positions,
        }
    return parameters, Rotation(theta, divisors)
