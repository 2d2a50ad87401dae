"""The default encoder on a CPU: the checkpoint's own weights in an OpenVINO graph, without torch."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import openvino as ov  # type: ignore[import-untyped]
from numpy.typing import NDArray
from safetensors import safe_open

from app.encoders.base import EncoderError, TokenBatch
from app.encoders.bert_graph import BertConfig, build_graph
from sparse_encoder.vector import SparseVector


class OpenVINOEncoder:
    """Computes in f32, so that the same text gives the same vector in every batch."""

    device = "CPU f32"

    def __init__(self, checkpoint: Path, never_emitted_ids: Sequence[int], threads: int = 0) -> None:
        """Reads `config.json` and the safetensors files of the directory `checkpoint`, and compiles the graph.

        `never_emitted_ids` are not computed at all. `threads`: of the CPU, 0 for all.

        :raises EncoderError: if it is not a BERT masked language model that the graph can compute.
        """
        config = BertConfig.from_json(json.loads((checkpoint / "config.json").read_text(encoding="utf-8")))
        weights = _read_weights(checkpoint)
        vocabulary_size = len(weights["bert.embeddings.word_embeddings.weight"])
        self._emitted_ids: NDArray[np.int32] = np.setdiff1d(
            np.arange(vocabulary_size, dtype=np.int32), np.array(never_emitted_ids, np.int32)
        )
        properties: dict[str, object] = {
            "INFERENCE_PRECISION_HINT": "f32",
            "PERFORMANCE_HINT": "LATENCY",
            "ENABLE_CPU_PINNING": False,  # pinned threads of two processes would share the same few cores
        }
        if threads:
            properties["INFERENCE_NUM_THREADS"] = threads
        graph = build_graph(config, weights, self._emitted_ids)
        self._request = ov.Core().compile_model(graph, "CPU", properties).create_infer_request()
        self._lock = threading.Lock()

    def encode(self, batch: TokenBatch) -> list[SparseVector]:
        """See `Encoder.encode`.

        :raises ValueError: if the model computes NaN or infinity.
        """
        with self._lock:  # the outputs are the request's own memory
            outputs = self._request.infer([batch.ids, batch.lengths], share_inputs=True, share_outputs=True)
            return [self._sparse(row) for row in outputs[0]]

    def _sparse(self, row: NDArray[np.float32]) -> SparseVector:
        """`row`: [number of emitted ids]. Ids ascend with the columns, so the order of the vector stays right."""
        columns = SparseVector.from_dense(row)
        return SparseVector(self._emitted_ids[columns.ids], columns.weights)


def _read_weights(checkpoint: Path) -> dict[str, NDArray[np.float32]]:
    weights: dict[str, NDArray[np.float32]] = {}
    for file in sorted(checkpoint.glob("*.safetensors")):
        with safe_open(file, framework="numpy") as tensors:
            # One by one: no other thread runs during a read, and a running service must answer meanwhile.
            for name in tensors.keys():  # noqa: SIM118 - not a dict
                weights[name] = tensors.get_tensor(name)
    wrong = sorted(name for name, tensor in weights.items() if tensor.dtype != np.float32)
    if wrong:
        raise EncoderError(
            f"{wrong[0]} is {weights[wrong[0]].dtype}, expected float32: publish the checkpoint in float32"
        )
    broken = sorted(name for name, tensor in weights.items() if not np.isfinite(tensor).all())
    if broken:  # which the graph would turn into empty vectors
        raise EncoderError(f"{broken[0]} holds NaN or infinity: the training that made it diverged; publish another")
    if "bert.embeddings.word_embeddings.weight" not in weights:
        raise EncoderError(f"{checkpoint} has no BERT weights in *.safetensors: give the path of a complete checkpoint")
    return weights
