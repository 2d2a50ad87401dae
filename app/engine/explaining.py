"""Explanations of vectors: one at a time in a thread of their own, so that they hold up nobody who wants vectors."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from weakref import WeakSet

import numpy as np
from numpy.typing import NDArray

from app.encoders.base import EncoderError, OutOfMemory
from app.encoders.explaining import Reason, read_query, reasons
from app.engine.admission import Admission
from app.engine.engine import Engine
from app.errors import EncodingFailed, Overloaded, Unavailable
from app.models.loaded import LoadedModel, peak_bytes
from app.models.memory import available_bytes
from sparse_encoder.artifact import InputType
from sparse_encoder.query_tokens import QueryTokens
from sparse_encoder.tokenizer import Piece
from sparse_encoder.vector import SparseVector

log = logging.getLogger(__name__)

MOST_WAITING = 64  #: texts of all clients that wait to be explained; a person waits for each


@dataclass(frozen=True, slots=True)
class Explained:
    """The vector of one text and where it comes from."""

    vector: SparseVector  #: as `Engine.encode` gives it, whole
    kept: SparseVector  #: what is left of it within the request's bounds
    reasons: list[Reason]  #: of each word of `kept`; positions are places in `tokens`
    tokens: list[tuple[int, Piece]]  #: of all windows, with the window of each; places in the text


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """How the texts of a request are encoded, and which words of their vectors are explained."""

    input_type: InputType
    query_tokens: QueryTokens | None
    truncate: bool
    max_windows: int
    top_k: int
    min_weight: float
    lenient: bool


class Explainer:
    """Of vectors of an engine; `stop` it with that."""

    def __init__(self, engine: Engine, admission: Admission) -> None:
        self._engine = engine
        self._admission = admission
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="explain")
        self._waiting = 0
        self._prepared: WeakSet[object] = WeakSet()  #: encoders that have explained something

    def stop(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def explain(
        self, model: LoadedModel, texts: Sequence[str], wanted: Wanted, client: str, weight: float = 1.0
    ) -> list[Explained | None]:
        """One for each of `texts`, in order, each of which counts as one more text in flight meanwhile; None for one
        that cannot be encoded, if that is `lenient`.

        :raises ServiceError: as `Engine.encode`; `Overloaded` also if too many explanations are waited for, and
            `Unavailable` if there is no memory for them.
        """
        if self._waiting + len(texts) > MOST_WAITING:
            raise Overloaded(f"{self._waiting} texts wait to be explained, one after the other: try again later")
        counted = self._admission.enter(client, len(texts), sum(map(len, texts)), weight)
        self._waiting += len(texts)
        seconds = self._admission.request_timeout_seconds
        try:
            async with asyncio.timeout(seconds):
                encoding = await self._engine.encode(
                    model,
                    texts,
                    wanted.input_type,
                    wanted.query_tokens,
                    client=client,
                    weight=weight,
                    truncate=wanted.truncate,
                    max_windows=wanted.max_windows,
                    lenient=wanted.lenient,
                )
                run = asyncio.get_running_loop().run_in_executor
                return [
                    None
                    if index in encoding.failed
                    else await run(self._thread, self._explain, model, text, encoding.vectors[index], wanted)
                    for index, text in enumerate(texts)
                ]
        except TimeoutError:
            raise Unavailable(
                f"not explained within {seconds:g} s: send fewer texts at once, or try again later"
            ) from None
        finally:
            self._waiting -= len(texts)
            self._admission.leave(client, len(texts), counted)

    def _explain(self, model: LoadedModel, text: str, vector: SparseVector, wanted: Wanted) -> Explained:
        kept = vector.prune(top_k=wanted.top_k, min_weight=wanted.min_weight)
        prompted = model.manifest.prompted(text, wanted.input_type)
        windows = model.tokenizer.located_windows(prompted, model.max_length(wanted.input_type), wanted.max_windows)
        prompt = len(prompted) - len(text)
        found: list[Reason] = []
        for number, window in enumerate(windows if len(kept) else []):
            before = sum(map(len, windows[:number]))
            ids = [piece.id for piece in window]
            new = [_moved(reason, before) for reason in self._reasons(model, ids, kept.ids, wanted)]
            # Of several windows a word has its heaviest weight.
            both = zip(found, new, strict=True)
            found = [max(pair, key=lambda reason: reason.weight) for pair in both] if found else new
        tokens = [(number, _in_text(piece, prompt)) for number, window in enumerate(windows) for piece in window]
        return Explained(vector, kept, found, tokens)

    def _reasons(
        self, model: LoadedModel, ids: Sequence[int], words: NDArray[np.int32], wanted: Wanted
    ) -> list[Reason]:
        if wanted.query_tokens is not None:
            return reasons(read_query(wanted.query_tokens, ids), None, words, "relu", "max")
        encoder = model.encoder_of(wanted.input_type)
        if encoder not in self._prepared:
            if peak_bytes(model.manifest.weight_bytes) > available_bytes():
                raise Unavailable(f"memory is too short to explain vectors of {model.version}: raise the memory limit")
            self._prepared.add(encoder)
        try:
            return encoder.explain(ids, words)
        except (EncoderError, OutOfMemory) as error:
            raise Unavailable(f"vectors of {model.version} cannot be explained now: {error}") from error
        except Exception:
            log.exception("a vector of %s could not be explained", model.version)
            raise EncodingFailed from None


def _moved(reason: Reason, before: int) -> Reason:
    """`reason` with positions of a window that begins with token `before` of all windows."""
    shares = tuple((position + before, share) for position, share in reason.shares)
    return replace(reason, at=None if reason.at is None else reason.at + before, shares=shares)


def _in_text(piece: Piece, prompt: int) -> Piece:
    """`piece` at its place in the text behind the `prompt`, characters; nowhere if it belongs to that."""
    if piece.start is None or piece.stop is None or piece.stop <= prompt:
        return replace(piece, start=None, stop=None)
    return replace(piece, start=max(0, piece.start - prompt), stop=piece.stop - prompt)
