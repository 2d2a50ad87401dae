"""The service as its users start and stop it."""

from __future__ import annotations

import http.client
import json
import math
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
import uvicorn

from app.__main__ import main
from tests.app.server import ROOT, Server, running, start
from tests.tiny import SENTENCES

pytestmark = pytest.mark.slow

#: In a lower precision a vector depends a little on what else is in its batch.
EXACT = ("--encoder-threads", "1", "--precision", "f32")


@pytest.fixture(scope="module")
def server(tiny_artifact: Path) -> Iterator[Server]:
    with running("-m", "app", "--port", "0", "--model", str(tiny_artifact), *EXACT) as server:
        yield server


def random_text(random_: random.Random) -> str:
    alphabets = [
        "가나다라마바사아자차카타파하손해배상치료",
        "abcXYZ 0123 .,;:'\"\\/<>&{}[]$",
        "😀👩‍👩‍👧🇰🇷",
        "\ud800\udbff\udc00\udfff",
        "\x00\x01\x1f\x7f\x85\u200b\u202e\ufeff\uffff",
        "\u1112\u1161\u11ab\u0301\u3099",
        "漢字かなЖшعربी",
        " \t\n\r\u3000",
        "${parameters.input}",
    ]
    if random_.random() < 0.01:
        return random_.choice("가a😀\x00\u1112 ") * 100_000
    chosen = random_.sample(alphabets, random_.randint(1, len(alphabets)))
    return "".join(random_.choice(random_.choice(chosen)) for _ in range(random_.choice([0, 1, 5, 30, 300])))


def test_five_hundred_random_strings_get_an_answer_and_harm_no_neighbour(server: Server) -> None:
    random_ = random.Random(3)
    with httpx.Client(base_url=server.url, timeout=None) as client:
        (alone,) = client.post("/encode", json=["손해배상"]).json()
        for number in range(500):
            text = random_text(random_)
            # json.dumps escapes lone surrogates, as a client may.
            response = client.post("/encode", content=json.dumps([text, "손해배상"]))
            assert response.status_code == 200, (number, response.text)
            assert response.content.isascii()
            odd, neighbour = response.json()
            assert all(key.strip() and "." not in key for key in odd)
            assert all(0 < weight < math.inf for weight in odd.values())
            assert neighbour == pytest.approx(alone, abs=2e-4)


def test_five_hundred_random_bodies_get_a_clear_error_or_an_answer(server: Server) -> None:
    random_ = random.Random(4)
    valid = json.dumps({"texts": [SENTENCES[0]], "input_type": "query", "top_k": 3}).encode()
    with httpx.Client(base_url=server.url, timeout=None) as client:
        for _ in range(500):
            body = bytearray(valid)
            for _ in range(random_.randint(1, 4)):
                position = random_.randrange(len(body))
                body[position : position + random_.randint(0, 3)] = random_.randbytes(random_.randint(0, 3))
            response = client.post("/encode", content=bytes(body))
            assert response.status_code in {200, 400, 422}, bytes(body)
            assert response.status_code == 200 or response.json()["error"]["message"]


def test_the_server_keeps_connections_longer_than_opensearch_does(
    tiny_artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen in what uvicorn is told: a test cannot wait for 75 seconds."""
    told: dict[str, object] = {}
    monkeypatch.setattr(sys, "argv", ["app", "--model", str(tiny_artifact)])
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(uvicorn, "run", lambda _, **options: told.update(options))
    main()
    assert told["timeout_keep_alive"] == 75
    assert told["port"] == 8080


def test_a_connection_is_used_again(server: Server) -> None:
    with httpx.Client(base_url=server.url, timeout=None) as client:
        ports = {client.get("/livez").extensions["network_stream"].get_extra_info("client_addr") for _ in range(3)}
    assert len(ports) == 1


def test_the_log_is_json_with_request_ids_and_without_texts(tiny_artifact: Path) -> None:
    with running("-m", "app", "--port", "0", "--model", str(tiny_artifact)) as server:
        httpx.post(f"{server.url}/encode", json=["비밀문서"], headers={"X-Request-Id": "mine-1"}, timeout=None)
        httpx.post(f"{server.url}/encode", json={"texts": [{"비밀문서": 1}]}, timeout=None)
        httpx.post(f"{server.url}/encode", content='["비밀문서', timeout=None)
        server.terminate()
        assert server.wait() == 0
    requests = [entry for entry in server.entries() if entry["message"] == "request"]
    assert [entry["status"] for entry in requests] == [200, 422, 400]
    assert requests[0]["request_id"] == "mine-1"
    assert "비밀" not in "".join(server.log)
    assert json.dumps("비밀")[1:-1] not in "".join(server.log)


def test_texts_are_logged_if_asked_for(tiny_artifact: Path) -> None:
    with running("-m", "app", "--port", "0", "--model", str(tiny_artifact), "--log-texts") as server:
        httpx.post(f"{server.url}/encode", json=["비밀문서"], headers={"X-Request-Id": "mine-1"}, timeout=None)
        server.terminate()
        assert server.wait() == 0
    (entry,) = [entry for entry in server.entries() if entry["message"] == "texts"]
    assert (entry["texts"], entry["request_id"]) == (["비밀문서"], "mine-1")


def test_uvicorn_can_start_the_factory_with_settings_from_the_environment(tiny_artifact: Path) -> None:
    command = ("-m", "uvicorn", "--factory", "app.main:create_app", "--port", "0")
    with running(*command, SPARSE_ENCODER_MODEL=str(tiny_artifact)) as server:
        assert httpx.get(f"{server.url}/readyz", timeout=None).json()["version"] == "tiny-v1"


def test_a_tampered_artifact_is_refused_with_the_reason(tiny_artifact: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tiny_artifact, copy)
    weights = copy / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    server = start("-m", "app", "--port", "0", "--model", str(copy))
    assert server.wait() == 3
    (reason,) = [entry for entry in server.entries() if str(entry["message"]).startswith("refusing to start")]
    assert "model.safetensors was changed after publishing" in str(reason["message"])


def test_wrong_flags_are_refused_with_the_reason() -> None:
    server = start("-m", "app", "--port", "70000")
    assert server.wait() == 1
    assert "port: Input should be less than or equal to 65535 (got '70000')" in "".join(server.log)


def test_sigterm_under_load_loses_no_answer(tiny_artifact: Path) -> None:
    """Clients behave as behind a load balancer: they send until `/readyz` says no."""
    not_ready, under_load = threading.Event(), threading.Event()
    lock = threading.Lock()
    statuses: list[int] = []
    failures: list[str] = []
    closing: list[bool] = []

    def send(server: Server) -> None:
        with httpx.Client(base_url=server.url, timeout=None) as client:
            while not not_ready.is_set():
                try:
                    response = client.post("/encode", json=SENTENCES)
                    complete = len(response.json()) == len(SENTENCES)
                except (httpx.HTTPError, ValueError) as error:
                    with lock:
                        failures.append(repr(error))
                    return
                with lock:
                    statuses.append(response.status_code if complete else 0)
                    closing.append(response.headers.get("connection") == "close")
                    if len(statuses) == 20:
                        under_load.set()

    with running("-m", "app", "--port", "0", "--model", str(tiny_artifact), "--drain-seconds", "3") as server:
        clients = [threading.Thread(target=send, args=(server,)) for _ in range(6)]
        for client in clients:
            client.start()
        under_load.wait()
        server.terminate()
        while httpx.get(f"{server.url}/readyz", timeout=None).status_code == 200:
            time.sleep(0.01)
        answered_before = len(statuses)
        while len(statuses) < answered_before + 1 and not failures:  # not ready, and yet it answers
            time.sleep(0.01)
        not_ready.set()
        for client in clients:
            client.join()
        assert failures == []
        assert set(statuses) == {200}
        assert closing[-1]
        assert not closing[0]
        assert server.wait() == 0
    times = {str(e["message"])[:8]: datetime.fromisoformat(str(e["time"])) for e in server.entries()}
    # At least, never at most: a slow machine only waits longer. The log has milliseconds.
    assert times["Shutting"] - times["SIGTERM:"] >= timedelta(seconds=2.99)


def test_a_request_that_runs_when_listening_ends_is_answered(tiny_artifact: Path) -> None:
    texts = [" ".join(SENTENCES)] * 1024
    with running("-m", "app", "--port", "0", "--model", str(tiny_artifact), "--drain-seconds", "0") as server:
        responses: list[httpx.Response] = []

        def send() -> None:
            responses.append(httpx.post(f"{server.url}/encode", json=texts, timeout=None))

        client = threading.Thread(target=send)
        client.start()
        while "texts_in_flight 1024.0" not in httpx.get(f"{server.url}/metrics", timeout=None).text:
            time.sleep(0.01)
        server.terminate()
        client.join()
        assert responses[0].status_code == 200
        assert len(responses[0].json()) == len(texts)
        assert server.wait() == 0
    shutting_down = next(i for i, entry in enumerate(server.entries()) if entry["message"] == "Shutting down")
    answered = next(i for i, entry in enumerate(server.entries()) if entry.get("path") == "/encode")
    assert shutting_down < answered


def test_a_closed_connection_stops_the_work_for_it(server: Server) -> None:
    """Over a real socket; what exactly is not computed is tested in test_api and test_engine."""
    address = urlsplit(server.url)

    def abandoned() -> float:
        metrics = httpx.get(f"{server.url}/metrics", timeout=None).text
        (line,) = [line for line in metrics.splitlines() if line.startswith("sparse_encoder_abandoned_texts_total")]
        return float(line.split()[1])

    before = abandoned()
    connection = http.client.HTTPConnection(address.hostname or "", address.port)
    texts = [f"{number} {' '.join(SENTENCES)}" for number in range(1024)]  # not one text often
    connection.request("POST", "/encode", json.dumps(texts))
    while "texts_in_flight 1024.0" not in httpx.get(f"{server.url}/metrics", timeout=None).text:
        time.sleep(0.001)
    connection.close()
    while "texts_in_flight 0.0" not in httpx.get(f"{server.url}/metrics", timeout=None).text:
        time.sleep(0.001)
    assert abandoned() > before


def test_a_request_that_outlasts_the_grace_period_is_told_to_try_again() -> None:
    texts = [f"{number} {' '.join(SENTENCES)}" for number in range(40)]  # about 20 s of one thread
    flags = ("--drain-seconds", "0", "--shutdown-grace-seconds", "1", "--encoder-threads", "1")
    with running("-m", "app", "--port", "0", "--max-batch-tokens", "512", *flags) as server:
        responses: list[httpx.Response] = []
        client = threading.Thread(
            target=lambda: responses.append(httpx.post(f"{server.url}/encode", json=texts, timeout=None))
        )
        client.start()
        while "texts_in_flight 40.0" not in httpx.get(f"{server.url}/metrics", timeout=None).text:
            time.sleep(0.01)
        server.terminate()
        client.join()
        assert server.wait() == 0
    (response,) = responses
    assert (response.status_code, response.json()["error"]["type"]) == (503, "unavailable")
    assert "stopped before the answer was ready: try again" in response.json()["error"]["message"]
    assert (response.headers["retry-after"], response.headers["x-amzn-errortype"]) == ("1", "ThrottlingException")
    (entry,) = [entry for entry in server.entries() if entry.get("path") == "/encode"]
    assert (entry["status"], entry["error"]) == (503, "unavailable")


def test_a_log_that_nobody_reads_stops_nothing(tiny_artifact: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-W", "error", "-m", "app", "--port", str(port), "--model", str(tiny_artifact)]
    with (
        subprocess.Popen([*command, "--log-texts"], cwd=ROOT, stderr=subprocess.PIPE) as process,
        httpx.Client(
            base_url=f"http://127.0.0.1:{port}", timeout=30, transport=httpx.HTTPTransport(retries=100)
        ) as client,
    ):
        try:
            while True:
                try:
                    client.get("/readyz").raise_for_status()
                    break
                except httpx.HTTPError:
                    time.sleep(0.05)
            while not re.search(r"dropped_log_lines_total [1-9]", client.get("/metrics").text):
                assert client.post("/encode", json=["가" * 200_000]).status_code == 200
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0
            assert process.stderr
            lines = process.stderr.read().splitlines()
            assert {"processors found", "ready"} <= {json.loads(line)["message"] for line in lines[:-1]}
        finally:
            process.kill()
