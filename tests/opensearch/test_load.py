"""A service that is full, stops or changes its model while a real cluster ingests."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.opensearch.service import EncoderService
from sparse_encoder.store import Store
from tests.app.server import running
from tests.opensearch.live import DOCUMENTS, Live, Run, Setup, assert_vectors, encode_requests, serve
from tests.tiny import SENTENCES, publish

# The first test downloads OpenSearch.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900), pytest.mark.usefixtures("indices")]


def test_a_service_that_is_full_is_asked_again(live: Live, run: Run, tiny_artifact: Path) -> None:
    with serve(tiny_artifact, "--port", "0", "--max-texts-per-request", "4", "--max-texts-in-flight", "8") as server:
        service = EncoderService(server.url)
        run("setup", "--encoder", server.url, "--batch-size", "4")
        live.index("ko-sparse-a", DOCUMENTS * 6)
        assert encode_requests(service, 429) > 0
        vectors = [service.encode(SENTENCES[start : start + 4]) for start in range(0, len(SENTENCES), 4)]
        expected = list(itertools.chain(*vectors)) * 6
        assert_vectors(live.vectors("ko-sparse-a"), expected)


def test_a_copy_goes_on_where_it_was_stopped(live: Live, run: Run, encoder: Setup, tiny_artifact: Path) -> None:
    run("teardown", "--name", "second")
    run("setup", *encoder)
    live.index("ko-sparse-a", DOCUMENTS)
    live.cluster.request("POST", "/_aliases", {"actions": [{"add": {"index": "ko-sparse-a", "alias": "help"}}]})
    copy = ("reindex", "--name", "second", "ko-sparse-a", "second-a", "--alias", "help", "--page", "7")
    assert "run setup --name second first" in run(*copy, fails=True)
    with serve(tiny_artifact) as server:
        port = server.url.rpartition(":")[2]
        run("setup", "--encoder", server.url, "--name", "second", "--batch-size", "4")
        live.cluster.request("PUT", "/second-a")
        live.index("second-a", DOCUMENTS[:10])  # as a copy that was stopped
    stopped = run(*copy, fails=True)
    assert "20 documents could not be copied, and the alias was not moved" in stopped
    assert "-> the nodes cannot reach the service" in stopped
    assert list(live.cluster.request("GET", "/_alias/help")) == ["ko-sparse-a"]
    with serve(tiny_artifact, "--port", port) as server:
        live.cluster.request("PUT", "/ko-sparse-a/_doc/0?refresh=true", DOCUMENTS[29])
        before = encode_requests(EncoderService(server.url))
        assert "pass 1: 21 documents copied" in run(*copy)
        assert encode_requests(EncoderService(server.url)) - before <= 10, "what was there was encoded again"
        assert list(live.cluster.request("GET", "/_alias/help")) == ["second-a"]
        assert live.documents("second-a")[0]["text"] == DOCUMENTS[29]["text"]
        live.cluster.request("PUT", "/second-a/_doc/77?refresh=true", DOCUMENTS[3])
        assert "help is second-a already" in run(*copy), "what was written since the switch was taken for a rest"
        assert len(live.documents("second-a")) == len(DOCUMENTS) + 1


def test_what_was_deleted_during_a_copy_is_deleted_in_it(live: Live, run: Run, encoder: Setup) -> None:
    run("setup", *encoder)
    run("setup", *encoder, "--name", "second")
    live.index("ko-sparse-a", DOCUMENTS)
    run("reindex", "--name", "second", "ko-sparse-a", "second-a")
    live.cluster.request("DELETE", "/ko-sparse-a/_doc/3?refresh=true")
    assert "deleted 1 documents in second-a" in run("reindex", "--name", "second", "ko-sparse-a", "second-a")
    assert len(live.documents("second-a")) == len(DOCUMENTS) - 1
    assert "is the name of an index" in run(
        "reindex", "--name", "second", "ko-sparse-a", "second-a", "--alias", "ko-sparse-a", fails=True
    )


class Ingest:
    """Bulks of DOCUMENTS, one after the other, until it is told to stop; their outcomes."""

    def __init__(self, live: Live, index: str) -> None:
        self.outcomes: list[dict[str, Any]] = []
        self._live, self._index = live, index
        self._done = threading.Semaphore(0)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._stopping.is_set():
            self.outcomes += self._live.bulk(self._index, DOCUMENTS)
            self._done.release()

    def wait_for_a_bulk(self) -> None:
        """One that begins after this call has ended too."""
        while self._done.acquire(blocking=False):
            pass
        for _ in range(2):
            self._done.acquire()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join()


@contextmanager
def ingesting(live: Live, index: str) -> Iterator[Ingest]:
    ingest = Ingest(live, index)
    try:
        yield ingest
    finally:
        ingest.stop()


def test_a_restart_under_ingest_loses_no_document(live: Live, run: Run, tiny_artifact: Path) -> None:
    """Documents of the time without a service fail with an error of their own; sent again, they are indexed."""
    with serve(tiny_artifact) as server:
        port = server.url.rpartition(":")[2]
        run("setup", "--encoder", server.url)
        with ingesting(live, "ko-sparse-b") as ingest:
            ingest.wait_for_a_bulk()
            server.terminate()
            assert server.wait() == 0
            ingest.wait_for_a_bulk()
            with serve(tiny_artifact, "--port", port):
                ingest.wait_for_a_bulk()
                ingest.stop()
                failed = [outcome for outcome in ingest.outcomes if "error" in outcome]
                assert failed, "the service was gone for at least one bulk"
                assert len(failed) % len(DOCUMENTS) == 0, "a batch is encoded whole or not at all"
                assert ["error" in outcome for outcome in ingest.outcomes[-len(DOCUMENTS) :]] == [False] * len(
                    DOCUMENTS
                )
                expected = EncoderService(server.url).encode(SENTENCES)
    assert_vectors(live.vectors("ko-sparse-b"), expected)


def test_a_swap_under_ingest_fails_nothing_and_a_pin_stays(live: Live, run: Run, tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    for version, shift in (("tiny-v1", 0.0), ("tiny-v2", 0.1)):
        store.publish(publish(tmp_path / version, version, bias_shift=shift), by="test")
    store.set_alias("stable", "tiny-v1", by="test")
    options = ("--store", str(tmp_path / "store"), "--admin-key", "key", "--encoder-threads", "1", "--port", "0")
    with running("-m", "app", *options) as server:
        service = EncoderService(server.url)
        run("setup", "--encoder", server.url)
        run("setup", "--encoder", server.url, "--name", "second", "--model-version", "tiny-v1")
        live.index("ko-sparse-a", DOCUMENTS)
        live.cluster.request("POST", "/_aliases", {"actions": [{"add": {"index": "ko-sparse-a", "alias": "help"}}]})
        with ingesting(live, "ko-sparse-b") as ingest:
            ingest.wait_for_a_bulk()
            headers = {"Authorization": "Bearer key"}
            swap = httpx.put(
                f"{server.url}/admin/aliases/stable", json={"version": "tiny-v2"}, headers=headers, timeout=60
            )
            assert swap.json().get("serving") == "tiny-v2", swap.text
            ingest.wait_for_a_bulk()
        assert [outcome for outcome in ingest.outcomes if "error" in outcome] == []
        of_version = {v: service.encode(SENTENCES, version=v) for v in ("tiny-v1", "tiny-v2")}
        assert_vectors(live.vectors("ko-sparse-b"), of_version["tiny-v2"])
        live.index("second-a", DOCUMENTS)
        assert_vectors(live.vectors("second-a"), of_version["tiny-v1"])
        assert "ok: second-a" in run("check", "--encoder", server.url, "--name", "second")
        # The index of the time before the swap is found, and one command goes over to a new one.
        checked = run("check", "--encoder", server.url, fails=True)
        assert "ko-sparse-a: its vectors were made by tiny-v1, and tiny-v2 encodes now" in checked
        assert "reindex --name ko-sparse-2 ko-sparse-a ko-sparse-2-a --alias help" in checked
        assert "ko-sparse-b: 8 documents have vectors of tiny-v2, and its _meta says tiny-v1" in checked
        pinned = run("setup", "--encoder", server.url, "--model-version", "tiny-v2", fails=True)
        assert "ko-sparse-a: its vectors were made by tiny-v1, and queries would be encoded by tiny-v2" in pinned
        run("setup", "--encoder", server.url, "--name", "second-2", "--model-version", "stable")
        moved = run("reindex", "--name", "second-2", "ko-sparse-a", "second-2-a", "--alias", "help")
        assert "pass 1: 30 documents copied" in moved
        assert "help is second-2-a now; ko-sparse-a is kept" in moved
        assert list(live.cluster.request("GET", "/_alias/help")) == ["second-2-a"]
        assert_vectors(live.vectors("second-2-a"), of_version["tiny-v2"])
        assert "ok: second-2-a" in run("check", "--encoder", server.url, "--name", "second-2")
