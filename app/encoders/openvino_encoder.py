"""The default encoder on a CPU: the checkpoint's own weights in an OpenVINO graph, without torch."""

from __future__ import annotations

import json
import logging
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import openvino as ov  # type: ignore[import-untyped]
from numpy.typing import NDArray

from app.encoders.base import (
    BLOCK_OF_SUMS,
    LONG_TEXT,
    EncoderError,
    TokenBatch,
    as_f32,
    own_rows,
    sparse_blocks,
    sparse_rows,
)
from app.encoders.explaining import Reason
from app.encoders.graph.builder import Int8
from app.encoders.graph.splade import Kind, build_graph, with_bf16_output, with_sums
from app.encoders.lazy import LazyRequest
from app.encoders.openvino_reader import OpenVINOReader
from app.encoders.static_int8 import static_int8_graph
from sparse_encoder.architectures import ARCHITECTURES
from sparse_encoder.artifact import Artifact
from sparse_encoder.packed import BLOCK
from sparse_encoder.vector import SparseVector
from sparse_encoder.weights import Weights, WeightsError

#: f32: as published. bf16: rounded while they are multiplied. int8: weights in blocks of 64 columns with a scale, and
#: the activations as well, block by block while they are multiplied. int8-static: see `static_int8`.
Precision = Literal["f32", "bf16", "int8", "int8-static"]

#: Of texts, padding included, that are computed at once in bf16, half as many in f32, whose numbers take twice as much:
#: more are no faster, and take memory.
MOST_POSITIONS = 4096

#: Kernels for shapes that came up lately are kept. Each takes about 2 MB, and making one again costs nothing that can
#: be measured beside its run, so that a few are enough; with OpenVINO's own 5,000 memory grows for days.
KERNELS_KEPT = 16
#: A batch is padded to a multiple of `STEP` tokens, one longer than `LONG` to one of two steps, and more texts than
#: `ROWS_EXACT` are filled up by an eighth at most. So there are few shapes, and kernels are quick at them: single texts
#: of 65 to 512 tokens take 5 to 15 % less in int8 and bf16, the padding included.
STEP, LONG = 16, 256
ROWS_EXACT = 16
#: Of more words not even what the graph gives is read as a whole.
LARGE_VOCABULARY = 65_536
#: One text of at most so many tokens has a graph of its own.
SHORT = 16
#: Products in bf16 are slower where the positions of a batch are no multiple of this: by up to 15 %, or 40 % if their
#: weights are held in blocks of int8. So it pays to compute some positions that nobody asked for.
TILE = 128
FILLED, FILLED_BLOCKS = 1 / 16, 1 / 4

#: See `Encoder.rounding`. Three times what was measured on the embedded model's golden texts at most.
ROUNDING: dict[Precision, float] = {"f32": 0.0, "bf16": 0.12, "int8": 0.15, "int8-static": 0.5}

log = logging.getLogger(__name__)


class OpenVINOEncoder:
    """See `Encoder`."""

    def __init__(
        self,
        artifact: Artifact,
        precision: Precision,
        threads: int = 0,
        cache_dir: Path | None = None,
        is_room: Callable[[int], bool] = lambda weight_bytes: True,
    ) -> None:
        """Compiles the graph of `artifact`; its `never_emitted_ids` are not computed at all. `threads`: 0 for all.

        `cache_dir`: for what is quantised once; needed for int8-static. `is_room`: whether there is memory to load
        such weights, in bytes of f32, once more.

        :raises EncoderError: if it is not a model that the graph can compute.
        """
        manifest = artifact.manifest
        self.device = f"CPU {precision}"
        self.rounding = ROUNDING[precision]
        self._emitted_ids: NDArray[np.int32] = np.setdiff1d(
            np.arange(manifest.vocabulary_size, dtype=np.int32), np.array(manifest.never_emitted_ids, np.int32)
        )
        self._own_tokens = ARCHITECTURES[manifest.architecture].head == "own"
        self._is_emitted = np.zeros(manifest.vocabulary_size, np.bool_)
        self._is_emitted[self._emitted_ids] = True
        bfloat16 = precision == "bf16" or (precision == "int8-static" and has_bfloat16())
        build = partial(_build, artifact, precision, self._emitted_ids, cache_dir, bfloat16)
        graph = build(blocks=False)
        self._properties: dict[str, object] = {
            "INFERENCE_PRECISION_HINT": "bf16" if bfloat16 else "f32",
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": BLOCK if precision == "int8" else 0,
            "PERFORMANCE_HINT": "LATENCY",
            "ENABLE_CPU_PINNING": False,  # pinned threads of two processes would share the same few cores
            "CPU_RUNTIME_CACHE_CAPACITY": KERNELS_KEPT,
        }
        if threads:
            self._properties["INFERENCE_NUM_THREADS"] = threads
        self._spare_graph: ov.Model | None = graph.clone()  # shares the weights
        self._request = _compiled(self._properties, graph)
        self._shape: tuple[int, int] | None = None  #: of the last run, if it was since memory was given back
        self._short_request: ov.InferRequest | None = None
        self._longest = max(manifest.max_length_document, manifest.max_length_query)  #: tokens that have a position
        self._size = 1 if bfloat16 else 2  #: of a number, in those of bf16
        self._filled = 0.0  #: see `TILE`
        if bfloat16:
            self._filled = FILLED_BLOCKS if precision == "bf16" and _has_int8(graph) else FILLED
        self._lock = threading.Lock()
        room = partial(is_room, manifest.weight_bytes)
        make = partial(_make_long, artifact, _files_of(artifact), room, build, self._properties)  # no circle to `self`
        self._long = LazyRequest(make)
        self._reader = OpenVINOReader(artifact, self._emitted_ids, threads)

    def specialise(self) -> None:
        """See `Encoder.specialise`: a graph for one text of up to `SHORT` tokens, in which every shape is known."""
        graph, self._spare_graph = self._spare_graph, None
        if graph is None or self._longest < SHORT:
            return
        ids, lengths = graph.inputs
        graph.reshape({ids: ov.PartialShape([1, SHORT]), lengths: ov.PartialShape([1])})
        self._short_request = _prepared(_compiled(self._properties, graph), SHORT)

    def prepare_aside(self) -> None:
        """See `Encoder.prepare_aside`."""
        with self._long.held():
            pass

    def device_memory_bytes(self) -> int:
        return 0

    def give_back_memory(self) -> None:
        """See `Encoder.give_back_memory`."""
        with self._lock:
            if self._shape:
                self._request.get_compiled_model().release_memory()
                self._leave_shape(*self._shape)
        self._long.give_back()
        self._reader.give_back_memory()

    def _leave_shape(self, texts: int, length: int) -> None:
        """Runs another shape than the last one. After `release_memory` OpenVINO (2026.4) gives no new memory to what
        keeps its shape, and the next run writes into what was freed: with ModernBERT the process dies."""
        few = min(SHORT // 2, self._longest)
        shape = (2 if texts == 1 else 1, few if few != length else few - 1)
        inputs = [np.zeros(shape, np.int32), np.full(shape[0], shape[1], np.int32)]
        self._request.infer(inputs, share_inputs=True, share_outputs=True)
        self._shape = None

    def explain(self, ids: Sequence[int], words: NDArray[np.int32]) -> list[Reason]:
        """See `Encoder.explain`: by a graph of its own, beside which `encode` may run."""
        return self._reader.explain(ids, words)

    def encode(self, batch: TokenBatch, *, aside: bool = False) -> list[SparseVector]:
        """See `Encoder.encode`. The first long text, or the first one aside, waits for a graph of its own, which takes
        the memory of the weights once more as long as it is used. Where it cannot be made, such texts are encoded as
        short ones are, and these wait.

        :raises ValueError: if the model computes NaN or infinity.
        """
        if aside or batch.ids.shape[1] > LONG_TEXT:
            with self._long.held() as request:
                if request is not None:
                    return self._encode(batch, request)
        with self._lock:
            return self._encode(batch, self._request)

    def _encode(self, batch: TokenBatch, request: ov.InferRequest) -> list[SparseVector]:
        rows = max(1, MOST_POSITIONS // (self._size * batch.ids.shape[1]))
        vectors: list[SparseVector] = []
        for start in range(0, len(batch.ids), rows):
            part = slice(start, start + rows)
            vectors += self._run(TokenBatch(batch.ids[part], batch.lengths[part]), request)
        return vectors

    def _run(self, batch: TokenBatch, request: ov.InferRequest) -> list[SparseVector]:
        texts, length = batch.ids.shape
        shape = efficient_shape(texts, length, self._longest, self._filled)
        if request is self._request:
            if shape == (1, SHORT) and self._short_request:
                request = self._short_request
            else:
                self._shape = shape
        ids = np.zeros(shape, np.int32)
        ids[:texts, :length] = batch.ids
        lengths = np.ones(shape[0], np.int32)
        lengths[:texts] = batch.lengths
        request.infer([ids, lengths], share_inputs=True, share_outputs=True)
        outputs = [_numbers(tensor) for tensor in request.output_tensors]
        if self._own_tokens:
            return own_rows(as_f32(outputs[0])[:texts, :length], batch, self._is_emitted)
        if len(outputs) > 1:
            return sparse_blocks(outputs[0][:texts], as_f32(outputs[1])[:texts], self._emitted_ids)
        return sparse_rows(as_f32(outputs[0][:texts]), self._emitted_ids)


def efficient_shape(texts: int, length: int, longest: int, filled: float) -> tuple[int, int]:
    """In which shape, no smaller than [texts, length], a batch is computed: of few, and of those that are quick.

    `longest`: tokens that have a position. `filled`: share of positions that may be added for a multiple of `TILE`.
    """
    padded = max(length, min(longest, _up(length, STEP if length <= LONG else 2 * STEP)))
    rows = texts if texts <= ROWS_EXACT else _up(texts, 1 << (texts.bit_length() - 4))
    whole = _up(rows, TILE // math.gcd(padded, TILE))
    return (whole if whole <= rows * (1 + filled) else rows), padded


def _up(number: int, step: int) -> int:
    return -(-number // step) * step


def has_bfloat16() -> bool:
    """Whether this CPU has instructions for it."""
    return "BF16" in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def _compiled(properties: dict[str, object], graph: ov.Model) -> ov.InferRequest:
    return ov.Core().compile_model(graph, "CPU", properties).create_infer_request()


def _prepared(request: ov.InferRequest, tokens: int) -> ov.InferRequest:
    """After its first run, in which weights are prepared."""
    request.infer([np.zeros((1, tokens), np.int32), np.full(1, tokens, np.int32)])
    return request


def _files_of(artifact: Artifact) -> dict[str, tuple[int, int, int]]:
    """What tells whether the files that the graph is made of are still those: inode, size, time of change in ns."""
    found = {path.name: path.stat() for path in (artifact.config, *artifact.path.glob("*.safetensors"))}
    return {name: (stat.st_ino, stat.st_size, stat.st_mtime_ns) for name, stat in found.items()}


def _make_long(
    artifact: Artifact,
    files: Mapping[str, tuple[int, int, int]],
    is_room: Callable[[], bool],
    build: Callable[..., ov.Model],
    properties: dict[str, object],
) -> ov.InferRequest | None:
    """The graph for long texts, of the same `files` as the other one; None, and why in the log, if none can be made."""
    version, without = artifact.manifest.version, "long texts are encoded one by one with the others, which wait"
    if not is_room():
        log.warning("no memory for the weights of %s once more: %s", version, without)
        return None
    try:
        graph = build(blocks=True) if _files_of(artifact) == files else None
    except (OSError, EncoderError) as error:
        log.warning("the files of %s cannot be read any more (%s): %s", version, error, without)
        return None
    if graph is None:
        log.warning("the files of %s are others now than those that were loaded: %s", version, without)
        return None
    longest = max(artifact.manifest.max_length_document, artifact.manifest.max_length_query)
    return _prepared(_compiled(properties, graph), min(SHORT, longest))


def _build(
    artifact: Artifact,
    precision: Precision,
    emitted_ids: NDArray[np.int32],
    cache_dir: Path | None,
    bfloat16: bool,
    *,
    blocks: bool,
) -> ov.Model:
    """`blocks`: for long texts; what is quantised once is so for short ones only."""
    build = partial(_read_graph, artifact, emitted_ids, "all" if precision == "int8" else "lossless")
    if precision == "int8-static":
        if cache_dir is None:
            raise ValueError("int8-static needs a cache_dir")
        graph = static_int8_graph(artifact, cache_dir, build)
    else:
        graph = build(blocks=blocks)
    graph = with_bf16_output(graph) if bfloat16 else graph
    if ARCHITECTURES[artifact.manifest.architecture].head == "vocabulary" and len(emitted_ids) > LARGE_VOCABULARY:
        graph = with_sums(graph, BLOCK_OF_SUMS)
    return graph


def _read_graph(artifact: Artifact, emitted_ids: NDArray[np.int32], int8: Int8, *, blocks: bool = False) -> ov.Model:
    manifest = artifact.manifest
    config = json.loads(artifact.config.read_text(encoding="utf-8"))
    kind = Kind(architecture=manifest.architecture, activation=manifest.activation, pooling=manifest.pooling)
    try:
        with Weights(artifact.path, artifact.prefix) as weights:
            return build_graph(kind, config, weights, emitted_ids, int8, blocks=blocks)
    except WeightsError as error:
        raise EncoderError(str(error)) from error


def _has_int8(graph: ov.Model) -> bool:
    return any(node.get_type_name() == "Constant" and node.get_element_type() == ov.Type.i8 for node in graph.get_ops())


def _numbers(tensor: ov.Tensor) -> NDArray[Any]:
    """What `tensor` holds; of bf16 the bits, since numpy has no such numbers."""
    data: NDArray[Any] = tensor.data
    return data.view(np.uint16) if tensor.element_type == ov.Type.bf16 else data
