"""Who may ask, and how long a client may take: API keys, TLS, CORS, slow clients."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from pydantic import SecretStr

from app.main import create_app
from app.settings import Settings
from app.web.access import ApiKeys
from app.web.middleware import client_of
from tests.app.server import ROOT, Server, running, start
from tests.tiny import SENTENCES

pytestmark = pytest.mark.slow

MANY_TEXTS = json.dumps([" ".join(SENTENCES)] * 300)


def entry(name: str, key: str) -> str:
    return f"{name}:{hashlib.sha256(key.encode()).hexdigest()}"


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@asynccontextmanager
async def serving(settings: Settings, **options: object) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(settings.model_copy(update=options))
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://service") as client,
    ):
        yield client


def test_a_key_that_was_made_is_known_by_its_entry_and_by_nothing_else() -> None:
    command = [sys.executable, "-W", "error", "-m", "app.access", "search"]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    key, made = (line.split()[-1] for line in said.splitlines())
    assert made == entry("search", key)
    keys = ApiKeys(SecretStr(f"{entry('other', 'x')},{made}"), None)
    for scheme in ("Bearer", "bearer", "BEARER"):
        assert keys.find(f"{scheme} {key}") == ("search", made.partition(":")[2], 1)
    sha256 = made.partition(":")[2]
    for wrong in (key, f"Basic {key}", f"Bearer {key} ", "Bearer ", "", f"Bearer {sha256}", "Bearer \u0430\ud800"):
        assert keys.find(wrong) is None


def test_an_entry_may_say_the_weight_of_its_client() -> None:
    keys = ApiKeys(SecretStr(f"{entry('search', 'a')}:20,{entry('bulk', 'b')}"), None)
    found = [keys.find(f"Bearer {key}") for key in "ab"]
    assert [(key.client, key.weight) for key in found if key] == [("search", 20), ("bulk", 1)]


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ("secret-key", "entry 1 of the API keys is not NAME:SHA256"),
        (f"{entry('a', 'x')} b:{'0' * 63}", "entry 2 of the API keys is not NAME:SHA256"),
        *(
            (f"{entry('a', 'x')}:{weight}", "nor NAME:SHA256:WEIGHT (1 to 999)")
            for weight in ("0", "-1", "1.5", "1000", "")
        ),
        (f"{entry('a', 'x')},{entry('a', 'y')}", "two keys of a"),
    ],
)
def test_a_wrong_entry_is_refused_and_not_shown(entries: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as refusal:
        ApiKeys(SecretStr(entries), None)
    assert "secret-key" not in str(refusal.value)


def test_the_service_does_not_start_with_a_wrong_entry() -> None:
    server = start("-m", "app", "--port", "0", "--api-keys", "s3cret")
    assert server.wait() == 1
    assert "wrong settings: entry 1 of the API keys is not NAME:SHA256" in "".join(server.log)
    assert "s3cret" not in "".join(server.log)


async def test_without_a_key_there_is_no_answer_but_to_those_who_watch(settings: Settings) -> None:
    async with serving(settings, api_keys=SecretStr(entry("search", "right"))) as client:
        documented = (await client.get("/openapi.json", headers=bearer("right"))).json()["paths"]
        paths = {"/docs": "get", "/openapi.json": "get", **{path: next(iter(of)) for path, of in documented.items()}}
        assert len(paths) > 8
        refused = set()
        for path, method in paths.items():
            response = await client.request(method, path)
            if response.status_code == 401:
                refused.add(path)
                assert response.json()["error"]["type"] == "unauthorized"
                assert response.headers["www-authenticate"] == "Bearer"
        opened = {path for path in paths if path not in refused and not path.startswith("/admin/")}
        assert opened == {"/", "/livez", "/readyz", "/ping", "/health", "/metrics"} & paths.keys()
        assert (await client.get("/no/such/path")).status_code == 401
        assert (await client.post("/encode", json=["가"], headers=bearer("wrong"))).status_code == 401
        assert (await client.post("/encode", json=["가"], headers=bearer("right"))).status_code == 200
        lines = (await client.get("/metrics")).text.splitlines()
        asked = [line for line in lines if "client_texts_total{" in line]
        assert asked == ['sparse_encoder_client_texts_total{client="search"} 1.0']
        assert any(re.fullmatch(r'sparse_encoder_refusals_total{reason="unauthorized"} \d+\.0', line) for line in lines)


async def test_the_admin_key_is_another_than_the_api_keys(settings: Settings, tiny_artifact: Path) -> None:
    async with serving(settings, api_keys=SecretStr(entry("search", "right"))) as client:
        for key in ("right", "wrong"):
            response = await client.post("/admin/rollback", json={"alias": "stable"}, headers=bearer(key))
            assert response.status_code == 403  # this service has no admin key, so nobody is let in


async def test_keys_in_a_file_come_and_go_without_a_restart(settings: Settings, tmp_path: Path) -> None:
    file = tmp_path / "keys"

    async def until(client: httpx.AsyncClient, key: str, status: int) -> None:
        while (await client.post("/encode", json=["가"], headers=bearer(key))).status_code != status:  # noqa: ASYNC110
            await asyncio.sleep(0.05)

    def write(text: str) -> None:
        file.with_suffix(".new").write_text(text)
        file.with_suffix(".new").rename(file)

    write("# nobody yet\n")
    async with serving(settings, api_keys_file=file) as client:
        await until(client, "first", 401)
        write(f"# since Monday\n{entry('one', 'first')}\n")
        await until(client, "first", 200)
        write(f"{entry('one', 'first')} # leaves soon\n{entry('two', 'second')}\n")
        await until(client, "second", 200)
        write("broken")
        write(f"{entry('two', 'second')}\n")
        await until(client, "first", 401)
        await until(client, "second", 200)


def test_a_broken_file_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(entry("one", "first"))
    keys = ApiKeys(SecretStr(""), tmp_path / "keys")
    for text in ("not an entry", "a:b"):
        (tmp_path / "keys").write_text(text)
        with pytest.raises(ValueError, match="is not NAME:SHA256"):
            keys.reload()
        assert [key.client for key in (keys.find("Bearer first"),) if key] == ["one"]
    (tmp_path / "keys").unlink()
    with pytest.raises(ValueError, match="cannot be read"):
        keys.reload()
    assert [key.client for key in (keys.find("Bearer first"),) if key] == ["one"]


def test_the_log_names_the_client_and_never_its_key(tiny_artifact: Path) -> None:
    flags = ("--port", "0", "--model", str(tiny_artifact), "--api-keys", entry("search", "s3cret"))
    with running("-m", "app", *flags) as server:
        httpx.post(f"{server.url}/encode", json=["가"], headers=bearer("s3cret"), timeout=None).raise_for_status()
        httpx.post(f"{server.url}/encode", json=["가"], headers=bearer("s3cret2"), timeout=None)
        server.terminate()
        assert server.wait() == 0
    clients = [entry.get("client") for entry in server.entries() if entry["message"] == "request"]
    assert clients[0] == "search"
    assert "s3cret" not in "".join(server.log)


async def test_pages_of_other_origins_may_not_ask_unless_they_are_named(settings: Settings) -> None:
    preflight = {"Origin": "https://a.example", "Access-Control-Request-Method": "POST"}
    async with serving(settings) as client:
        response = await client.options("/encode", headers=preflight)
        assert response.status_code == 405
        assert "access-control-allow-origin" not in response.headers
    async with serving(settings, cors_origins="https://a.example,https://b.example") as client:
        response = await client.options("/encode", headers=preflight)
        assert (response.status_code, response.headers["access-control-allow-origin"]) == (200, "https://a.example")
        other = await client.options("/encode", headers={**preflight, "Origin": "https://c.example"})
        assert "access-control-allow-origin" not in other.headers


async def test_a_text_of_too_many_characters_loses_its_end_or_is_refused(settings: Settings) -> None:
    long = "손해배상 청구와 그 밖의 일"
    # In bf16 a weak word may come or go with what else is in its batch.
    async with serving(settings, max_characters_per_text=5, precision="f32") as client:
        both = {"texts": [long, "지하철", long[:5]]}
        cut, short, same = (await client.post("/encode", json=both)).json()
        assert cut == same != short
        assert "sparse_encoder_cut_texts_total 1.0" in (await client.get("/metrics")).text.splitlines()
        explained = (await client.post("/explain", json={"texts": [long], "query": long})).json()
        assert {word["word"] for word in explained["texts"][0]["words"]} == same.keys()
        assert {word["word"] for word in explained["query"]["words"]} <= same.keys()
        assert [part["cut"]["stop"] for part in (explained["query"], *explained["texts"])] == [len(long)] * 2
        assert (await client.post("/encode", json={**both, "on_error": "null"})).json() == [cut, short, same]
        strict = {**both, "truncate": "error"}
        for path, body in (("/encode", strict), ("/explain", {**strict, "texts": ["가"], "query": long})):
            response = await client.post(path, json=body)
            assert response.status_code == 413
            assert response.json()["error"]["message"].startswith("item 0 has 15 characters, at most 5 are taken")
        null, *rest = (await client.post("/encode", json={**strict, "on_error": "null"})).json()
        assert [null, *rest] == [None, short, same]
        assert "sparse_encoder_cut_texts_total 4.0" in (await client.get("/metrics")).text.splitlines()


def test_tls(tiny_artifact: Path, tmp_path: Path) -> None:
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=localhost"
    names = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run([*command.split(), *names], capture_output=True, check=True)
    flags = (
        "--port",
        "0",
        "--model",
        str(tiny_artifact),
        "--ssl-certfile",
        str(certificate),
        "--ssl-keyfile",
        str(key),
    )
    with running("-m", "app", *flags) as server:
        assert server.url.startswith("https://")
        context = ssl.create_default_context(cafile=certificate)
        response = httpx.post(f"{server.url}/encode", json=["손해배상"], verify=context, timeout=None)
        assert response.status_code == 200
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            httpx.get(f"{server.url}/livez", timeout=None)


@pytest.fixture(scope="module")
def hasty(tiny_artifact: Path) -> Iterator[Server]:
    """A service that gives its clients half a second."""
    flags = ("--port", "0", "--model", str(tiny_artifact), "--encoder-threads", "1", "--client-timeout-seconds", "0.5")
    with running("-m", "app", *flags) as server:
        yield server


@contextmanager
def connected(server: Server, **options: int) -> Iterator[socket.socket]:
    address = urlsplit(server.url)
    with socket.socket() as connection:
        for name, value in options.items():
            connection.setsockopt(socket.SOL_SOCKET, getattr(socket, name), value)
        connection.connect((address.hostname, address.port))
        yield connection


def everything(connection: socket.socket) -> bytes:
    """What the server says until it closes."""
    said = b""
    try:
        while part := connection.recv(65536):
            said += part
    except ConnectionResetError:
        pass
    return said


@pytest.mark.parametrize(
    "beginning",
    [
        b"",
        b"POST /enc",
        b"POST /encode HTTP/1.1\r\nhost: a\r\nx-slow: ",
        b"POST /encode HTTP/1.1\r\nhost: a\r\ncontent-length: 100\r\n\r\n",
        b'POST /encode HTTP/1.1\r\nhost: a\r\ncontent-length: 100\r\n\r\n["',
        b"POST /encode HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n5\r\n[",
        b"GET /livez HTTP/1.1\r\nhost: a\r\n\r\nPOST /enc",  # the second of two on one connection
    ],
)
def test_a_client_that_does_not_finish_its_request_is_told_and_let_go(hasty: Server, beginning: bytes) -> None:
    with connected(hasty) as connection:
        connection.sendall(beginning)
        *_, last = everything(connection).split(b"HTTP/1.1 ")
    assert last.startswith(b"408 ")
    assert json.loads(last.partition(b"\r\n\r\n")[2])["error"]["type"] == "request_timeout"


def test_a_byte_now_and_then_does_not_help(hasty: Server) -> None:
    with connected(hasty) as connection:
        connection.sendall(b"POST /encode HTTP/1.1\r\nhost: a\r\ncontent-length: 1000000\r\n\r\n")
        connection.settimeout(0.05)
        said = b""
        while not said:  # ends by the limit of the test if the service is patient
            connection.sendall(b" ")
            try:
                said = connection.recv(65536)
            except TimeoutError:
                continue
    assert said.startswith(b"HTTP/1.1 408 ")


def test_endless_headers_are_refused(hasty: Server) -> None:
    with connected(hasty) as connection:
        connection.sendall(b"GET /livez HTTP/1.1\r\nx-long: ")
        try:
            for _ in range(100):
                connection.sendall(b"a" * 10_000)
        except (BrokenPipeError, ConnectionResetError):
            pass
        assert everything(connection).startswith(b"HTTP/1.1 431 ")


def test_a_client_that_does_not_read_its_answers_is_cut_off(hasty: Server) -> None:
    with connected(hasty, SO_RCVBUF=4096) as connection:
        connection.sendall(b"GET /openapi.json HTTP/1.1\r\nhost: a\r\n\r\n" * 1000)  # more than the kernel keeps
        while not any("did not read its answer" in line for line in hasty.log):
            time.sleep(0.05)


def test_a_fast_client_is_not_hurried_by_a_slow_encoder(hasty: Server) -> None:
    """The answer may take longer than the client may: only the client is hurried."""
    with httpx.Client(base_url=hasty.url, timeout=None) as client:
        for _ in range(2):
            response = client.post("/encode", content=MANY_TEXTS)
            assert response.status_code == 200
            assert len(response.json()) == 300


@pytest.mark.parametrize(
    ("scope", "client"),
    [
        ({"sparse_encoder.client": "search", "sparse_encoder.weight": 3.0, "client": ("10.0.0.1", 1)}, "key search"),
        ({"client": ("10.0.0.1", 1)}, "address 10.0.0.1"),
        ({"client": ("::ffff:10.0.0.1", 1)}, "address 10.0.0.1"),
        ({"client": ("2001:db8::1:2:3:4", 1)}, "address 2001:db8::/64"),
        ({"client": ("2001:db8::9", 1)}, "address 2001:db8::/64"),
        ({"client": ("fe80::1%eth0", 1)}, "address fe80::/64"),
        ({"client": ("no:address", 1)}, "address no:address"),
        ({"client": None}, "address "),
    ],
)
def test_a_client_is_who_has_a_key_or_else_an_address(scope: dict[str, Any], client: str) -> None:
    assert client_of(scope) == (client, scope.get("sparse_encoder.weight", 1.0))


@pytest.mark.parametrize(
    ("flags", "forwarded", "taken"),
    [
        ([], "1.1.1.1", False),
        (["--trusted-proxies", "10.0.0.0/8"], "1.1.1.1", False),
        (["--trusted-proxies", "10.0.0.0/8,127.0.0.1"], "1.1.1.1", True),
        (
            ["--trusted-proxies", "10.0.0.0/8,127.0.0.1"],
            "2.2.2.2, 1.1.1.1, 10.1.1.1",
            True,
        ),  # what the first says is a lie
    ],
)
def test_the_address_that_a_proxy_names_counts_if_the_proxy_is_trusted(
    tiny_artifact: Path, flags: list[str], forwarded: str, taken: bool
) -> None:
    """Seen in who is refused: the load of one client leaves room for another."""
    limits = ("--max-texts-in-flight", "40", "--max-texts-per-request", "40", "--max-batch-tokens", "64")
    texts = [" ".join([*SENTENCES, str(number)]) for number in range(40)]
    with running("-m", "app", "--port", "0", "--model", str(tiny_artifact), *limits, *flags) as server:
        loading = True

        def load() -> None:
            while loading:
                httpx.post(f"{server.url}/encode", json=texts, timeout=None)

        thread = threading.Thread(target=load)
        thread.start()
        try:
            while "texts_in_flight 40.0" not in httpx.get(f"{server.url}/metrics", timeout=None).text:
                time.sleep(0.001)
            headers = {"X-Forwarded-For": forwarded}
            statuses = {
                httpx.post(f"{server.url}/encode", json=texts[:5], headers=headers, timeout=None).status_code
                for _ in range(20)
            }
        finally:
            loading = False
            thread.join()
    assert statuses <= ({200} if taken else {200, 429})
    assert taken or 429 in statuses
