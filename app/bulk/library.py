"""Vectors as columns of Arrow tables, and a callable that adds them, for pipelines of others: Ray Data, Spark."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from threading import Lock
from typing import TYPE_CHECKING

from app.bulk.encoding import BulkEncoder, Encoded, ModelChoice, VectorChoice, load, open_artifact
from app.models.loaded import LoadedModel
from sparse_encoder.store import Store

if TYPE_CHECKING:
    import pyarrow

_loading = Lock()
_kept: dict[ModelChoice, LoadedModel] = {}  #: the last one of this process


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
        self._encoder = BulkEncoder(_loaded(model), vectors)

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


def _loaded(choice: ModelChoice) -> LoadedModel:
    """What `choice` stands for now, if it names a version of a store; else what it stood for the first time."""
    if choice.store is not None:
        choice = replace(choice, version=Store(choice.store).resolve(choice.version))
    with _loading:
        if choice not in _kept:
            _kept.clear()  # the next one may need its memory
            _kept[choice] = load(choice, open_artifact(choice))
        return _kept[choice]


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
