"""Explains vectors on a CPU, in f32, whatever precision encodes: a second graph, compiled when somebody first asks."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import openvino as ov  # type: ignore[import-untyped]
from numpy.typing import NDArray

from app.encoders.base import EncoderError
from app.encoders.explaining import Head, Reading, Reason, reasons
from app.encoders.graph.lexical_bert import LexicalBertShape
from app.encoders.graph.reading import build_reading_graph
from app.encoders.graph.splade import Kind, first_of, shape_of
from sparse_encoder.architectures import ARCHITECTURES
from sparse_encoder.artifact import Artifact
from sparse_encoder.lexical_tables import NONE
from sparse_encoder.weights import Weights, WeightsError


class OpenVINOReader:
    """Any thread may call it; calls run one after the other."""

    def __init__(self, artifact: Artifact, emitted_ids: NDArray[np.int32], threads: int) -> None:
        """Reads nothing yet. `threads`: 0 for all."""
        manifest = artifact.manifest
        self._artifact = artifact
        self._kind = Kind(architecture=manifest.architecture, activation=manifest.activation, pooling=manifest.pooling)
        self._own_tokens = ARCHITECTURES[manifest.architecture].head == "own"
        self._emitted_ids = emitted_ids
        self._words = np.append(emitted_ids, np.int32(NONE))  #: by column of the graph
        self._threads = threads
        self._lock = threading.Lock()
        self._request: ov.InferRequest | None = None
        self._used = False  #: since `give_back_memory` was last called

    def explain(self, ids: Sequence[int], words: NDArray[np.int32]) -> list[Reason]:
        """See `Encoder.explain`."""
        try:
            with self._lock, Weights(self._artifact.path, self._artifact.prefix) as weights:
                config = json.loads(self._artifact.config.read_text(encoding="utf-8"))
                if self._request is None:
                    self._request = self._compile(config, weights)
                self._used = True
                reading = self._read(self._request, np.array(ids, np.int32))
                head = None if self._own_tokens else self._head(config, weights, words)
        except (WeightsError, OSError) as error:
            raise EncoderError(f"what explains vectors cannot be read: {error}") from error
        return reasons(reading, head, words, self._kind.activation, self._kind.pooling)

    def give_back_memory(self) -> None:
        """Lets the graph go that nobody used since this was last called."""
        with self._lock:
            if not self._used:
                self._request = None
            self._used = False

    def _compile(self, config: dict[str, Any], weights: Weights) -> ov.InferRequest:
        graph = build_reading_graph(self._kind, config, weights, self._emitted_ids)
        properties: dict[str, object] = {
            "INFERENCE_PRECISION_HINT": "f32",
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
            "PERFORMANCE_HINT": "LATENCY",
            "ENABLE_CPU_PINNING": False,
            "CPU_RUNTIME_CACHE_CAPACITY": 1,
        }
        if self._threads:
            properties["INFERENCE_NUM_THREADS"] = self._threads
        return ov.Core().compile_model(graph, "CPU", properties).create_infer_request()

    def _read(self, request: ov.InferRequest, ids: NDArray[np.int32]) -> Reading:
        length = len(ids)
        request.infer([ids[None], np.array([length], np.int32)])
        outputs = {
            name: request.get_tensor(output).data[0].copy()  # its own memory, written by the next text
            for output in request.get_compiled_model().outputs
            for name in output.get_names()
        }
        nothing = np.empty((0, length), np.float32)
        places = np.empty((0, length), np.int32)
        related = np.empty((length, 0), np.int32)
        if self._own_tokens:
            places = np.where(np.isin(ids, self._emitted_ids), ids, np.int32(NONE))[None]
        elif "places" in outputs:
            places = self._words[outputs["places"]].reshape(-1, length)
        if "related" in outputs:
            related = self._words[outputs["related"]]
        return Reading(
            ids=ids,
            places=places,
            weights=outputs.get("weights", nothing).reshape(places.shape),
            shares=outputs.get("shares", np.ones(places.shape, np.float32)).reshape(places.shape),
            related=related,
            added=outputs.get("added", nothing.T),
            states=outputs.get("states", nothing.T),
            speaks=places[0] != NONE if "places" in outputs else np.ones(length, np.bool_),
        )

    def _head(self, config: dict[str, Any], weights: Weights, words: NDArray[np.int32]) -> Head:
        shape = shape_of(self._kind.architecture, config)
        layers = shape.bert if isinstance(shape, LexicalBertShape) else shape
        return Head(
            weights.rows(first_of(weights, layers.decoders), words.tolist()),
            weights[first_of(weights, layers.decoder_biases)][words],
        )
