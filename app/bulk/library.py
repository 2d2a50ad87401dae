"""Vectors as columns of Arrow tables, and a callable that adds them, for pipelines of others: Ray Data, Spark."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from app.bulk.encoding import BulkEncoder, Encoded, ModelChoice, VectorChoice, load, open_artifact

if TYPE_CHECKING:
    import pyarrow


class Encode:
    """Adds to a table `NAME_tokens` and `NAME_sparse` (a list of `token` and `weight`) for each column of texts.

        ds.map_batches(Encode, batch_format="pyarrow", batch_size=1000, concurrency=4, num_cpus=2,
                       fn_constructor_kwargs={"texts": ["text"], "model": ModelChoice(threads=2)})

    A text that is missing or has no token has an empty vector; one that the encoder fails on, none.
    """

    def __init__(
        self,
        texts: Sequence[str] = ("text",),
        model: ModelChoice = ModelChoice(),  # noqa: B008 - it does not change
        vectors: VectorChoice = VectorChoice(),  # noqa: B008
    ) -> None:
        """Loads the model, unless the last one of this process has it already.

        :raises ArtifactError, ModelError, EncoderError, StoreError: if it cannot be had, or not be served.
        """
        self._texts = texts
        self._encoder = _encoder(model, vectors, open_artifact(model).manifest.version)

    def __call__(self, table: pyarrow.Table) -> pyarrow.Table:
        """:raises ValueError: if a column is missing, or holds no texts."""
        import pyarrow as pa

        for name in self._texts:
            if name not in table.column_names:
                raise ValueError(f"there is no column {name}, but {', '.join(table.column_names)}")
            texts = table[name].to_pylist()
            if wrong := next((text for text in texts if not isinstance(text, str | None)), None):
                raise ValueError(f"the column {name} holds {type(wrong).__name__}, not texts")
            encoded = self._encoder.encode([text or "" for text in texts])
            counts = pa.array([one.tokens if one else 0 for one in encoded], pa.int32())
            table = table.append_column(f"{name}_tokens", counts)
            table = table.append_column(f"{name}_sparse", vector_column(encoded))
        return table


@lru_cache(maxsize=1)
def _encoder(model: ModelChoice, vectors: VectorChoice, version: str) -> BulkEncoder:
    """`version`: what `model` stands for now, so that an alias that moves, or other files, are loaded anew."""
    return BulkEncoder(load(model, open_artifact(model)), vectors)


def vector_column(vectors: Sequence[Encoded | None]) -> pyarrow.Array:
    """`list<struct<token, weight>>`; null where there is none."""
    import pyarrow as pa

    tokens = [token for one in vectors if one for token in one.weights]
    weights = [weight for one in vectors if one for weight in one.weights.values()]
    ends = [0]
    for one in vectors:
        ends.append(ends[-1] + (len(one.weights) if one else 0))
    pairs = pa.StructArray.from_arrays(
        [pa.array(tokens, pa.string()), pa.array(weights, pa.float32())], names=["token", "weight"]
    )
    missing = pa.array([one is None for one in vectors], pa.bool_())
    return pa.ListArray.from_arrays(pa.array(ends, pa.int32()), pairs, mask=missing)
