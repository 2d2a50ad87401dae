"""The engine with a real tokenizer and a real encoder that the test holds and releases."""

from __future__ import annotations

import asyncio
import gc
import logging
import math
import threading
import weakref
from collections.abc import AsyncIterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from app.encoders.base import TokenBatch
from app.engine.admission import Admission
from app.engine.engine import CHARACTERS_AT_ONCE, Encoding, Engine, in_parts
from app.engine.pace import Pace
from app.errors import EncodingFailed, Overloaded, TextTooLong, TooLarge, Unavailable
from app.metrics import Metrics
from app.models.loaded import LoadedModel, load_model
from sparse_encoder.artifact import Artifact, InputType, read_artifact
from sparse_encoder.tokenizer import TokenisedText, Tokenizer
from sparse_encoder.vector import SparseVector
from tests.app.conftest import openvino
from tests.app.controlled import ControlledEncoder
from tests.tiny import SENTENCES, publish


@pytest.fixture
def encoder(tiny_artifact: Path) -> ControlledEncoder:
    return ControlledEncoder(openvino(read_artifact(tiny_artifact)))


@pytest.fixture
def model(tiny_artifact: Path, encoder: ControlledEncoder) -> LoadedModel:
    return load_model(read_artifact(tiny_artifact), lambda _: encoder)


class OneModel(Engine):
    """Most tests have one."""

    def __init__(self, model: LoadedModel, timeout: float = 50.0, longest_run: float = math.inf) -> None:
        self.pace = Pace(max_batch_tokens=64)
        admission = Admission(max_texts_in_flight=10, request_timeout_seconds=timeout, pace=self.pace)
        super().__init__(Metrics(), admission, max_batch_tokens=64, query_cache_size=4, longest_run_seconds=longest_run)
        self.model = model

    async def vectors(self, texts: Sequence[str], input_type: InputType = "document") -> Encoding:
        return await self.encode(self.model, texts, input_type)


@pytest.fixture
async def engine(model: LoadedModel, encoder: ControlledEncoder) -> AsyncIterator[OneModel]:
    made = OneModel(model)
    made.start()
    yield made
    encoder.release()
    await made.stop()


def start(engine: OneModel, *texts: str, query: bool = False) -> asyncio.Task[Encoding]:
    return asyncio.create_task(engine.vectors(texts, "query" if query else "document"))


async def queued(engine: Engine, count: int) -> None:
    """Returns when `count` texts wait for the encoder."""
    while engine.statistics().queued_texts != count:  # noqa: ASYNC110 - tokenising threads fill the queue, it has no event
        await asyncio.sleep(0)


async def test_vectors_come_in_the_order_of_the_texts_though_batches_do_not(engine: OneModel) -> None:
    texts = [SENTENCES[0], "나", SENTENCES[1], "a", " ".join(SENTENCES)]
    together = await engine.vectors(texts, "document")
    for text, vector in zip(texts, together.vectors, strict=True):
        (alone,) = (await engine.vectors([text], "document")).vectors
        np.testing.assert_array_equal(vector.ids, alone.ids)
        np.testing.assert_allclose(vector.weights, alone.weights, rtol=0, atol=1e-4)


async def test_blank_texts_get_empty_vectors_without_the_encoder(engine: OneModel, encoder: ControlledEncoder) -> None:
    encoder.hold()
    encoded = await engine.vectors(["", " \n\t", "\u200b"], "document")
    assert [len(vector) for vector in encoded.vectors] == [0, 0, 0]
    assert (encoder.batches, encoded.tokens) == ([], 0)


async def test_queries_overtake_documents_that_wait(engine: OneModel, encoder: ControlledEncoder) -> None:
    encoder.hold()
    running = start(engine, "a")
    await encoder.entered()
    document = start(engine, SENTENCES[0])
    await queued(engine, 1)
    query = start(engine, "손해배상", query=True)
    await queued(engine, 2)
    encoder.release()
    await asyncio.gather(running, document, query)
    assert [len(batch[0]) for batch in encoder.batches[1:]] == [query.result().tokens, document.result().tokens]


async def test_a_query_does_not_wait_for_a_document_that_takes_long(
    model: LoadedModel, encoder: ControlledEncoder
) -> None:
    engine = OneModel(model, longest_run=1.0)
    engine.pace.tokens_per_second = 10.0
    engine.start()
    encoder.hold_aside()
    document = start(engine, SENTENCES[0])
    await encoder.entered()
    assert len((await engine.vectors(["손해배상"], "query")).vectors[0])
    assert not document.done()
    late = start(engine, SENTENCES[1])  # which waits for the other, not for queries
    await queued(engine, 1)
    encoder.release()
    await asyncio.gather(document, late)
    assert encoder.asides == [1, 1]
    await engine.stop()


async def test_behind_a_text_that_takes_long_none_is_taken_that_would_be_too_late(
    model: LoadedModel, encoder: ControlledEncoder
) -> None:
    engine = OneModel(model, timeout=50.0, longest_run=1.0)
    engine.pace.tokens_per_second = 1.0
    engine.start()
    encoder.hold_aside()
    first = start(engine, " ".join(SENTENCES))  # some minute of work
    await encoder.entered()
    with pytest.raises(Overloaded, match="of work it would take"):
        await engine.vectors([SENTENCES[1]])
    encoder.release()
    await first
    await engine.stop()


async def test_texts_that_take_long_teach_the_pace_though_nothing_else_comes(model: LoadedModel) -> None:
    engine = OneModel(model, longest_run=1.0)
    engine.pace.tokens_per_second = 1.0  # so slow that all of them go aside
    engine.start()
    for _ in range(8):
        await engine.vectors([SENTENCES[0], SENTENCES[1]])
    assert engine.pace.tokens_per_second > 2
    await engine.stop()


async def test_a_text_is_encoded_though_nothing_can_be_prepared_for_it(
    model: LoadedModel, encoder: ControlledEncoder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise RuntimeError("no memory")

    monkeypatch.setattr(encoder, "prepare_aside", fail)
    engine = OneModel(model, longest_run=1.0)
    engine.pace.tokens_per_second = 1.0
    engine.start()
    assert len((await engine.vectors([SENTENCES[0]])).vectors[0])
    assert "cannot be made" in caplog.text
    await engine.stop()


async def test_requests_that_wait_together_share_a_batch(engine: OneModel, encoder: ControlledEncoder) -> None:
    encoder.hold()
    running = start(engine, "a")
    await encoder.entered()
    waiting = [start(engine, text) for text in "가나다라"]
    await queued(engine, 4)
    encoder.release()
    await asyncio.gather(running, *waiting)
    assert [len(batch) for batch in encoder.batches] == [1, 4]


async def test_an_abandoned_request_is_never_computed(engine: OneModel, encoder: ControlledEncoder) -> None:
    encoder.hold()
    running = start(engine, "a")
    await encoder.entered()
    gone, stays = start(engine, "손해배상", "인공지능"), start(engine, "나")
    await queued(engine, 3)
    gone.cancel()
    await asyncio.wait([gone])
    encoder.release()
    await asyncio.gather(running, stays)
    assert [len(batch) for batch in encoder.batches] == [1, 1]
    assert engine.statistics().texts_in_flight == 0


async def test_too_many_texts_in_flight_are_refused_whole_and_later_ones_are_not(
    engine: OneModel, encoder: ControlledEncoder
) -> None:
    encoder.hold()
    accepted = start(engine, *"가나다라마바사")
    await encoder.entered()
    with pytest.raises(Overloaded, match="7 texts are in flight and 4 more would exceed 10"):
        await engine.vectors(list("abcd"), "document")
    encoder.release()
    assert len((await accepted).vectors) == 7
    assert len((await engine.vectors(list("abcd"), "document")).vectors) == 4


async def test_a_failed_batch_answers_every_waiter_and_the_worker_lives_on(
    engine: OneModel, encoder: ControlledEncoder
) -> None:
    encoder.hold()
    encoder.fails = True
    running = start(engine, "a")
    await encoder.entered()
    waiting = [start(engine, "나", "다"), start(engine, SENTENCES[0])]
    await queued(engine, 3)
    encoder.release()
    outcomes = await asyncio.gather(running, *waiting, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [EncodingFailed] * 3
    with pytest.raises(EncodingFailed):
        await engine.check(engine.model)
    encoder.fails = False
    await engine.check(engine.model)
    assert len((await engine.vectors(["손해배상"], "query")).vectors[0])


async def test_a_dead_encoder_is_not_hidden_by_the_cache_of_queries(
    engine: OneModel, encoder: ControlledEncoder
) -> None:
    await engine.vectors([engine.model.probe], "query")
    encoder.fails = True
    with pytest.raises(EncodingFailed):
        await engine.vectors(["나"])
    with pytest.raises(EncodingFailed):
        await engine.check(engine.model)


async def test_a_text_that_makes_the_encoder_raise_fails_alone(
    engine: OneModel,
    encoder: ControlledEncoder,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(logging.getLogger("app"), "propagate", True)
    encoder.hold()
    running = start(engine, "a")
    await encoder.entered()
    (poison,) = engine.model.tokenizer.encode_batch(["다"], 64)
    encoder.poison = poison.ids
    waiting = [start(engine, text) for text in ("가", "나", "다", "라")]
    await queued(engine, 4)
    encoder.release()
    outcomes = await asyncio.gather(running, *waiting, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [Encoding, Encoding, Encoding, EncodingFailed, Encoding]
    assert [len(batch) for batch in encoder.batches] == [1, 4, 2, 2, 1, 1]
    for task, text in zip((*waiting[:2], waiting[3]), "가나라", strict=True):
        (vector,) = task.result().vectors
        np.testing.assert_allclose(vector.weights, engine.model.vector(text, "document").weights, atol=1e-4)
    await engine.check(engine.model)
    logged = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert {record.getMessage() for record in logged} == {"1 of 4 texts failed, each alone"}
    assert logged[0].exc_info


async def test_a_request_that_takes_too_long_is_given_up(model: LoadedModel, encoder: ControlledEncoder) -> None:
    engine = OneModel(model, timeout=0.001)
    engine.start()
    encoder.hold()
    with pytest.raises(Unavailable, match=r"not encoded within 0\.001 s"):
        await engine.vectors(["손해배상"], "document")
    assert engine.statistics().texts_in_flight == 0
    encoder.release()
    await engine.stop()


async def test_stop_answers_what_waits_and_refuses_what_comes_later(
    model: LoadedModel, encoder: ControlledEncoder
) -> None:
    engine = OneModel(model)
    engine.start()
    encoder.hold()
    running = start(engine, "a")
    await encoder.entered()
    waiting = start(engine, SENTENCES[0])
    await queued(engine, 1)
    stopping = asyncio.create_task(engine.stop())
    await asyncio.sleep(0)
    with pytest.raises(Unavailable, match="stopping"):
        await engine.vectors(["나"], "document")
    encoder.release()
    await stopping
    assert all(len(encoded.vectors) == 1 for encoded in await asyncio.gather(running, waiting))


async def test_a_batch_never_has_two_models_and_each_answer_is_of_its_own(
    engine: OneModel, encoder: ControlledEncoder, tmp_path: Path
) -> None:
    artifact = read_artifact(publish(tmp_path / "other", "tiny-v2", bias_shift=0.5))
    other = ControlledEncoder(openvino(artifact))
    second = load_model(artifact, lambda _: other)
    encoder.hold()
    running = start(engine, "a")
    await encoder.entered()
    mine = [start(engine, text) for text in "가나"]
    theirs = [asyncio.create_task(engine.encode(second, [text], "document")) for text in "가나"]
    await queued(engine, 4)
    encoder.release()
    await asyncio.gather(running, *mine, *theirs)
    assert [len(batch) for batch in encoder.batches] == [1, 2]
    assert [len(batch) for batch in other.batches] == [2]
    for ours, others, text in zip(mine, theirs, "가나", strict=True):
        for task, model in ((ours, engine.model), (others, second)):
            (vector,) = task.result().vectors
            np.testing.assert_allclose(vector.weights, model.vector(text, "document").weights, atol=1e-4)
        assert ours.result().vectors[0].weights[0] != pytest.approx(others.result().vectors[0].weights[0], 0.01)


def _given(encoder: ControlledEncoder, _: Artifact) -> ControlledEncoder:
    return encoder


@pytest.mark.parametrize("fails", [False, True])
async def test_the_idle_engine_keeps_no_model_in_memory(
    engine: OneModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, fails: bool
) -> None:
    monkeypatch.setattr(logging.getLogger("app.engine.thread"), "disabled", True)  # pytest keeps the errors logged
    artifact = read_artifact(publish(tmp_path / "other", "tiny-v2"))
    made = ControlledEncoder(openvino(artifact))
    model = load_model(artifact, partial(_given, made))
    made.fails = fails
    gone = weakref.ref(made)
    gc.disable()  # reference counts must do it: a collection comes too late for a model of hundreds of megabytes
    try:
        try:
            await engine.encode(model, ["손해배상"], "document")
        except EncodingFailed:
            assert fails
            made.fails = False
        assert not made.fails
        del model, made
        while gone():  # noqa: ASYNC110 - the encoder's thread has it for a moment
            await asyncio.sleep(0.001)
    finally:
        gc.enable()


async def test_identical_texts_in_flight_are_computed_once(engine: OneModel, encoder: ControlledEncoder) -> None:
    encoder.hold()
    running = start(engine, "a")
    await encoder.entered()
    first = start(engine, "손해배상", "손해배상")
    await queued(engine, 1)
    second = start(engine, "손해배상", "인공지능")
    await queued(engine, 2)
    encoder.release()
    await asyncio.gather(running, first, second)
    assert [len(batch) for batch in encoder.batches] == [1, 2]
    vectors = [*first.result().vectors, second.result().vectors[0]]
    assert len(vectors) == 3
    for vector in vectors:
        np.testing.assert_array_equal(vector.ids, vectors[0].ids)
    assert engine.statistics().pending_texts == 0


async def test_who_joined_a_text_gets_it_though_the_first_to_ask_has_left(
    engine: OneModel, encoder: ControlledEncoder
) -> None:
    encoder.hold()
    running = start(engine, "a")
    await encoder.entered()
    first = start(engine, "손해배상")
    await queued(engine, 1)
    second = start(engine, "손해배상")
    while engine.statistics().pending_waiters < 3:  # noqa: ASYNC110 - as in `queued`
        await asyncio.sleep(0)
    first.cancel()
    await asyncio.wait([first])
    encoder.release()
    await asyncio.gather(running, second)
    assert len(second.result().vectors[0])
    assert engine.statistics().pending_texts == 0


async def test_a_text_that_all_have_left_is_computed_anew_for_who_comes_later(
    engine: OneModel, encoder: ControlledEncoder
) -> None:
    encoder.hold()
    running = start(engine, "a")
    await encoder.entered()
    first = start(engine, "손해배상")
    await queued(engine, 1)
    first.cancel()
    await asyncio.wait([first])
    assert engine.statistics().pending_texts == 1  # "a"
    second = start(engine, "손해배상")
    encoder.release()
    await asyncio.gather(running, second)
    assert len(second.result().vectors[0])


async def test_recent_queries_are_not_computed_again(engine: OneModel, encoder: ControlledEncoder) -> None:
    first = await engine.vectors(["손해배상", "인공지능"], "query")
    again = await engine.vectors(["인공지능", "손해배상"], "query")
    assert len(encoder.batches) == 1
    assert (again.tokens, again.encode_seconds) == (first.tokens, 0.0)
    for vector, before in zip(again.vectors, first.vectors[::-1], strict=True):
        np.testing.assert_array_equal(vector.weights, before.weights)
    await engine.vectors(["손해배상"], "document")  # whose end may be cut elsewhere
    assert len(encoder.batches) == 2
    for text in "가나다라":  # four fit the cache
        await engine.vectors([text], "query")
    await engine.vectors(["손해배상"], "query")
    assert len(encoder.batches) == 7


async def test_a_batch_that_does_not_fit_the_device_is_halved_until_it_does(
    engine: OneModel, encoder: ControlledEncoder
) -> None:
    encoder.hold()
    running = start(engine, "a")
    await encoder.entered()
    encoder.most_texts = 1
    waiting = [start(engine, text) for text in ("가", "나", "다", "라", "마")]
    await queued(engine, 5)
    encoder.release()
    await asyncio.gather(running, *waiting)
    assert [len(batch) for batch in encoder.batches] == [1, 5, 2, 1, 1, 3, 1, 2, 1, 1]
    for task, text in zip(waiting, "가나다라마", strict=True):
        (vector,) = task.result().vectors
        np.testing.assert_allclose(vector.weights, engine.model.vector(text, "document").weights, atol=1e-4)


async def test_only_the_text_that_cannot_fit_alone_fails(engine: OneModel, encoder: ControlledEncoder) -> None:
    encoder.hold()
    running = start(engine, "a")
    await encoder.entered()
    encoder.most_tokens = 6
    long, short = start(engine, SENTENCES[0]), start(engine, "가")
    await queued(engine, 2)
    encoder.release()
    outcomes = await asyncio.gather(running, long, short, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [Encoding, EncodingFailed, Encoding]
    assert len((await engine.vectors(["가"], "document")).vectors[0])


async def test_what_would_only_wait_for_its_deadline_is_refused_at_once(
    engine: OneModel, encoder: ControlledEncoder
) -> None:
    encoder.hold()
    running = start(engine, SENTENCES[0])
    await encoder.entered()
    for _ in range(50):
        engine.pace.observe(64, 128.0)  # as a slow device does: half a token a second
    waiting = start(engine, " ".join(SENTENCES))  # nothing is ahead of it in the queue, so it is tried
    await queued(engine, 1)
    with pytest.raises(Overloaded, match=r"behind \d+\.\d s of work it would take .* of the 50 s that a request has"):
        await engine.vectors([SENTENCES[1]])
    query = start(engine, "손해", query=True)  # which overtakes documents
    await queued(engine, 2)
    encoder.release()
    assert len((await running).vectors) == len((await waiting).vectors) == len((await query).vectors) == 1
    assert engine.statistics().texts_in_flight == 0


async def test_a_batch_that_cannot_be_finished_is_refused_before_it_is_tokenised_to_the_end(
    engine: OneModel, encoder: ControlledEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.pace.tokens_per_second = 2.0
    read: list[int] = []
    encode_windows = Tokenizer.encode_windows

    def counted(self: Tokenizer, texts: Sequence[str], max_length: int, most: int) -> list[list[TokenisedText]]:
        read.append(len(texts))
        return encode_windows(self, texts, max_length, most)

    monkeypatch.setattr(Tokenizer, "encode_windows", counted)
    monkeypatch.setattr("app.engine.engine.CHARACTERS_AT_ONCE", 300)
    with pytest.raises(TooLarge, match=r"10 texts of such length take about 320 s, .* send at most 1 of them at once"):
        await engine.vectors([" ".join(SENTENCES) * 9] * 10)
    assert sum(read) == 2
    assert engine.statistics().texts_in_flight == 0
    engine.pace.tokens_per_second = None
    assert len((await engine.vectors([" ".join(SENTENCES) * 9] * 10)).vectors) == 10


async def test_clients_take_turns_and_do_not_wait_for_texts_of_each_other(
    engine: OneModel, encoder: ControlledEncoder
) -> None:
    """Also where the text is the same: it is in the queue of each."""

    def ask(client: str, text: str) -> asyncio.Task[Encoding]:
        return asyncio.create_task(engine.encode(engine.model, [text], "document", client=client))

    encoder.hold()
    running = ask("many", "a")
    await encoder.entered()
    many = [ask("many", " ".join([text, *SENTENCES])) for text in "가나다라마"]  # each fills a batch
    await queued(engine, 5)
    few = ask("few", " ".join(["마", *SENTENCES]))
    await queued(engine, 6)
    encoder.release()
    await asyncio.gather(running, *many, few)
    (text,) = engine.model.tokenizer.encode_batch([" ".join(["마", *SENTENCES])], engine.model.max_length("document"))
    assert [text.ids] in encoder.batches[1:3]
    assert encoder.batches.count([text.ids]) == 2


def test_parts_hold_every_text_once() -> None:
    texts = ["가" * (n * 37 % 5000) for n in range(500)]
    parts = list(in_parts(texts, 4000))
    assert [text for part in parts for text in part] == texts
    assert all(sum(min(len(text), 4000) for text in part[:-1]) < CHARACTERS_AT_ONCE for part in parts)
    assert list(in_parts([], 4000)) == []


@pytest.mark.parametrize("text", ["\ufdfa" * 500_000, "\ufdfa" * 250])
async def test_a_text_that_unfolds_is_tokenised_in_a_thread(
    engine: OneModel, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    threads: list[str] = []
    encode_windows = Tokenizer.encode_windows

    def seen(self: Tokenizer, texts: Sequence[str], max_length: int, most: int) -> list[list[TokenisedText]]:
        threads.append(threading.current_thread().name)
        return encode_windows(self, texts, max_length, most)

    monkeypatch.setattr(Tokenizer, "encode_windows", seen)
    await engine.vectors([text])
    assert [name.partition("_")[0] for name in threads] == ["tokenise"]


LONG = " ".join(SENTENCES)  #: of some windows


async def test_a_long_text_has_the_maximum_of_its_windows(engine: OneModel, encoder: ControlledEncoder) -> None:
    tokenizer, most = engine.model.tokenizer, engine.model.max_length("document")
    windows, _ = tokenizer.encode_windows([LONG, SENTENCES[0]], most, 32)
    expected = SparseVector.maximum(engine.model.encoder.encode(TokenBatch.pad([w.ids for w in windows], 0)))
    encoder.batches.clear()
    encoded = await engine.encode(engine.model, [SENTENCES[0], LONG, " "], "document", max_windows=32)
    given = [ids for batch in encoder.batches for ids in batch]
    short, long, blank = encoded.vectors
    np.testing.assert_array_equal(np.sort(long.ids), np.sort(expected.ids))
    np.testing.assert_allclose(long.weights, expected.weights, rtol=0, atol=1e-4)
    np.testing.assert_allclose(short.weights, engine.model.vector(SENTENCES[0], "document").weights, atol=1e-4)
    assert len(blank) == 0
    assert sorted(given) == sorted([*(w.ids for w in windows), tokenizer.encode_batch([SENTENCES[0]], most)[0].ids])
    assert encoded.tokens == sum(map(len, given))
    assert engine.statistics().texts_in_flight == 0


async def test_windows_count_for_what_waits(engine: OneModel, encoder: ControlledEncoder) -> None:
    (windows,) = engine.model.tokenizer.encode_windows([LONG], engine.model.max_length("document"), 32)
    encoder.hold()
    running = start(engine, "a")
    await encoder.entered()
    waiting = asyncio.create_task(engine.encode(engine.model, [LONG], "document", max_windows=32))
    await queued(engine, len(windows))
    assert engine.statistics().queued_tokens == sum(len(window.ids) for window in windows)
    assert engine.statistics().texts_in_flight == 2
    for _ in range(50):
        engine.pace.observe(64, 128.0)
    with pytest.raises(Overloaded, match="of work it would take"):
        await engine.vectors(["나"])
    waiting.cancel()  # and all its windows with it
    await asyncio.wait([waiting])
    encoder.release()
    await running
    assert [len(batch) for batch in encoder.batches] == [1]
    assert engine.statistics().pending_texts == 0


async def test_a_window_that_fails_fails_its_text_only(engine: OneModel, encoder: ControlledEncoder) -> None:
    (windows,) = engine.model.tokenizer.encode_windows([LONG], engine.model.max_length("document"), 32)
    encoder.poison = windows[1].ids
    with pytest.raises(EncodingFailed):
        await engine.encode(engine.model, [LONG], "document", max_windows=32)
    assert len((await engine.encode(engine.model, [LONG], "document")).vectors) == 1


async def test_more_windows_than_may_be_are_cut_off_or_refused(engine: OneModel) -> None:
    cut = await engine.encode(engine.model, [LONG], "document", max_windows=2)
    assert cut.tokens == 2 * engine.model.max_length("document")
    with pytest.raises(TextTooLong, match="have more than the 64 tokens that the model reads in 2 windows: split them"):
        await engine.encode(engine.model, [LONG], "document", max_windows=2, truncate=False)
    whole = await engine.encode(engine.model, [LONG], "document", max_windows=32, truncate=False)
    assert whole.tokens > cut.tokens
