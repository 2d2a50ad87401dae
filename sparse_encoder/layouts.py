"""The layout of one checkpoint: its architecture's row of the table, filled in by its `config.json`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sparse_encoder.architectures import ARCHITECTURES, Architecture, Head
from sparse_encoder.fields import FieldError, Fields
from sparse_encoder.layers import Layers
from sparse_encoder.older import NONE, Older


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """What a checkpoint of one architecture and config consists of."""

    architecture: Architecture
    config: dict[str, Any]  #: complete: every field that computing the model needs
    layers: Layers
    has_bias: bool  #: whether there is an output bias
    older: Older  #: what a checkpoint of others may differ in

    @property
    def embedding(self) -> str:
        """The name of the matrix [vocabulary, size] of the input, and of the output where both are tied."""
        return self.layers.words

    @property
    def decoder(self) -> str | None:
        """The name of the output matrix where it is one of its own; None where only own tokens are weighed."""
        return None if self.layers.own_weight else self.layers.decoders[0]

    @property
    def biases(self) -> tuple[str, ...]:
        """Names of the output bias [vocabulary]; transformers keeps some twice, the last one counts."""
        return self.layers.decoder_biases[::-1] if self.has_bias else ()

    @property
    def vocabulary_size(self) -> int:
        return int(self.config["vocab_size"])

    @property
    def positions(self) -> int:
        """Tokens of the longest text."""
        return int(self.config["max_position_embeddings"]) - self.layers.first_position

    @property
    def pad_is_position(self) -> bool:
        """Whether positions are counted from `pad_token_id` on, so that it stays as it is."""
        return self.layers.first_position > 0


def layout_of_config(config: Mapping[str, Any], head: Head = "vocabulary") -> Layout:
    """The layout of a checkpoint that others made, by its `config.json`, and by the head that its files show.

    :raises FieldError: if it is of an architecture that is not served, or a field is wrong.
    """
    kind = config.get("model_type")
    served = {
        kind: name
        for name, row in ARCHITECTURES.items()
        if row.head == head and not row.own_code
        for kind in (row.model_type, *row.older.model_types)
    }
    name = served.get(kind) if isinstance(kind, str) else None
    if name is None:
        raise FieldError(
            f"config.json has model_type {str(kind)[:80]!r}, served are {', '.join(sorted(served))}: use one of those"
        )
    return layout(name, Fields(config))


def layout(architecture: Architecture, fields: Fields) -> Layout:
    """:raises FieldError: if a field of the config is wrong."""
    row = ARCHITECTURES[architecture]
    fields.choice("position_embedding_type", row.position_type, (row.position_type,))
    config, layers = row.read(fields)
    made = Layout(
        architecture=architecture,
        config={"model_type": row.model_type, **config},
        layers=layers,
        older=row.older if row.older.is_it(fields) else NONE,
        has_bias=row.head == "vocabulary" and fields.flag("decoder_bias", True),
    )
    for size, heads in (("hidden_size", "num_attention_heads"), ("dim", "n_heads")):
        if size in made.config and made.config[size] % made.config[heads]:
            raise FieldError(
                f"config.json has {size} {made.config[size]}, no multiple of {heads} {made.config[heads]}: repair it"
            )
    if made.positions < 3:
        raise FieldError(f"config.json leaves {made.positions} positions for a text: repair max_position_embeddings")
    return made
