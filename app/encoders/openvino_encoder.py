"""The default encoder on a CPU: the checkpoint's own weights in an OpenVINO graph, without torch."""

from __future__ import annotations

import json
import threading
from typing import Literal

import numpy as np
import openvino as ov  # type: ignore[import-untyped]
from numpy.typing import NDArray

from app.encoders.base import EncoderError, TokenBatch, sparse_rows
from app.encoders.graph.splade import Kind, build_graph
from sparse_encoder.artifact import Artifact
from sparse_encoder.packed import BLOCK
from sparse_encoder.vector import SparseVector
from sparse_encoder.weights import Weights, WeightsError

#: f32: as published. bf16: rounded while they are multiplied. int8: weights in blocks of 64 columns with a scale, and
#: the activations as well, block by block while they are multiplied.
Precision = Literal["f32", "bf16", "int8"]

#: See `Encoder.rounding`. Three times what was measured on the embedded model's golden texts at most (.041, .049).
ROUNDING: dict[Precision, float] = {"f32": 0.0, "bf16": 0.12, "int8": 0.15}


class OpenVINOEncoder:
    """See `Encoder`."""

    def __init__(self, artifact: Artifact, precision: Precision, threads: int = 0) -> None:
        """Compiles the graph of `artifact`; its `never_emitted_ids` are not computed at all. `threads`: 0 for all.

        :raises EncoderError: if it is not a model that the graph can compute.
        """
        manifest = artifact.manifest
        self.device = f"CPU {precision}"
        self.rounding = ROUNDING[precision]
        self._emitted_ids: NDArray[np.int32] = np.setdiff1d(
            np.arange(manifest.vocabulary_size, dtype=np.int32), np.array(manifest.never_emitted_ids, np.int32)
        )
        config = json.loads((artifact.path / "config.json").read_text(encoding="utf-8"))
        kind = Kind(architecture=manifest.architecture, activation=manifest.activation, pooling=manifest.pooling)
        try:
            with Weights(artifact.path) as weights:
                graph = build_graph(
                    kind, config, weights, self._emitted_ids, "all" if precision == "int8" else "lossless"
                )
        except WeightsError as error:
            raise EncoderError(str(error)) from error
        compiled = ov.Core().compile_model(graph, "CPU", _properties(precision, threads))
        self._request = compiled.create_infer_request()
        self._lock = threading.Lock()

    def encode(self, batch: TokenBatch) -> list[SparseVector]:
        """See `Encoder.encode`.

        :raises ValueError: if the model computes NaN or infinity.
        """
        with self._lock:  # the outputs are the request's own memory
            outputs = self._request.infer([batch.ids, batch.lengths], share_inputs=True, share_outputs=True)
            return sparse_rows(outputs[0], self._emitted_ids)


def _properties(precision: Precision, threads: int) -> dict[str, object]:
    properties: dict[str, object] = {
        "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": BLOCK if precision == "int8" else 0,
        "PERFORMANCE_HINT": "LATENCY",
        "ENABLE_CPU_PINNING": False,  # pinned threads of two processes would share the same few cores
    }
    if threads:
        properties["INFERENCE_NUM_THREADS"] = threads
    return properties
