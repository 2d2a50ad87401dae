"""What one connection may hold and for how long: real sockets, uvicorn, and an application that the test controls."""

from __future__ import annotations

import asyncio
import inspect
import json
import logging
import os
import random
import re
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httptools
import pytest
import uvicorn
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from app.web.protocol import MAX_AHEAD_BYTES, MAX_HEADER_BYTES, PIECE_BYTES, BoundedProtocol, loop_with_timeout

READ = 256 * 1024  #: bytes that the event loop takes from the kernel at once, at most
PATIENT, HASTY = 60.0, 0.5


class Service:
    """`/echo` says what it was sent; `/wait` answers when it is released, unless the client leaves."""

    def __init__(self, client_timeout_seconds: float, certificate: tuple[Path, Path] | None = None) -> None:
        self.release = threading.Event()
        self.waiting = threading.Semaphore(0)
        self.gone = threading.Semaphore(0)
        self.paths: list[str] = []
        config = uvicorn.Config(
            self._answer,
            port=0,
            log_config=None,
            interface="asgi3",
            lifespan="off",
            ws="none",
            http=BoundedProtocol.with_timeout(client_timeout_seconds),
            loop=loop_with_timeout(client_timeout_seconds),  # type: ignore[arg-type]
            timeout_keep_alive=75,
            ssl_certfile=certificate and certificate[0],
            ssl_keyfile=certificate and certificate[1],
        )
        self.server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self.server.run)
        self._started = threading.Event()
        self._thread.start()
        while not self.server.started:
            self._started.wait(0.01)
        self.port: int = self.server.servers[0].sockets[0].getsockname()[1]

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.paths.append(scope["path"])
        body, more = b"", True
        if scope["path"] != "/early":
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    self.gone.release()
                    return
                body, more = body + message.get("body", b""), message.get("more_body", False)
        if scope["path"] == "/wait":
            self.waiting.release()
            leaving = asyncio.ensure_future(receive())
            released = asyncio.ensure_future(asyncio.to_thread(self.release.wait))
            await asyncio.wait([leaving, released], return_when=asyncio.FIRST_COMPLETED)
            leaving.cancel()
            if not self.release.is_set():
                self.gone.release()
                return
        names = [name.decode() for name, _ in scope["headers"]]
        said = json.dumps({"path": scope["path"], "body": body.decode(), "headers": names}).encode()
        headers = [(b"content-length", b"%d" % len(said))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": said})

    @property
    def protocol(self) -> BoundedProtocol:
        (protocol,) = self.server.server_state.connections
        assert isinstance(protocol, BoundedProtocol)
        return protocol

    @contextmanager
    def connected(self) -> Iterator[socket.socket]:
        with socket.create_connection(("127.0.0.1", self.port)) as connection:
            yield connection

    def stop(self) -> None:
        self.release.set()
        self.server.should_exit = True
        self._thread.join()


@pytest.fixture
def make(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[..., Service]]:
    """Services, stopped at the end; none of them may have logged an error."""
    made: list[Service] = []

    def one(*arguments: Any) -> Service:
        made.append(Service(*arguments))
        return made[-1]

    yield one
    for service in made:
        service.stop()
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []


@pytest.fixture
def service(make: Callable[..., Service]) -> Service:
    return make(PATIENT)


def request(path: str, body: bytes = b"", *headers: bytes, method: bytes = b"POST") -> bytes:
    lines = [b"%s %s HTTP/1.1" % (method, path.encode()), b"host: a", b"content-length: %d" % len(body), *headers]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


LAST = request("/last", b"", b"connection: close")


def everything(connection: socket.socket) -> bytes:
    said = b""
    try:
        while part := connection.recv(65536):
            said += part
    except ConnectionResetError:
        pass
    return said


def answers(connection: socket.socket) -> list[tuple[int, dict[str, Any]]]:
    """Status and body of every answer until the server closes."""
    found, rest = [], everything(connection)
    while rest:
        head, _, rest = rest.partition(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head)
        body, rest = (rest[: int(length[1])], rest[int(length[1]) :]) if length else (b"", rest)
        found.append((int(head.split()[1]), json.loads(body) if body else {}))
    return found


def one_answer(connection: socket.socket) -> tuple[int, dict[str, Any]]:
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += connection.recv(1)
    (length,) = re.findall(rb"content-length: (\d+)", head)
    return int(head.split()[1]), json.loads(connection.recv(int(length), socket.MSG_WAITALL))


def send_until_cut_off(connection: socket.socket, piece: bytes, most: int) -> int:
    """The bytes that went out before the server closed; fails if it takes `most`."""
    sent = 0
    try:
        while sent < most:
            connection.sendall(piece)
            sent += len(piece)
    except (BrokenPipeError, ConnectionResetError):
        return sent
    raise AssertionError(f"{sent} bytes were taken")


# What a connection may hold


CHUNKED = b"POST /echo HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n5\r\nabcde\r\n"


@pytest.mark.parametrize(
    ("beginning", "piece"),
    [
        (CHUNKED + b"0\r\n", b"x-name: %s\r\n" % (b"a" * 1000)),  # trailer fields
        (CHUNKED + b"0\r\nx-name: ", b"a" * 1000),  # one that does not end
        (CHUNKED + b"5;", b"a" * 1000),  # a chunk extension
        (b"POST /echo HTTP/1.1\r\nx-name: ", b"a" * 1000),
        (b"POST /", b"a" * 1000),
        (b"POST /echo HTTP/1.1\r\n", b"a: b\r\n" * 100),
        (request("/echo"), b"\r\n" * 500),  # what may stand between two requests
    ],
)
def test_what_is_no_body_is_taken_up_to_a_limit(service: Service, beginning: bytes, piece: bytes) -> None:
    with service.connected() as connection:
        connection.sendall(beginning)
        send_until_cut_off(connection, piece, 30_000_000)  # the kernel takes some of it
        status, said = answers(connection)[-1]
        assert (status, said["error"]["type"]) == (431, "headers_too_large")


def test_a_trailer_is_read_over_and_is_no_header(service: Service) -> None:
    with service.connected() as connection:
        connection.sendall(CHUNKED + b"0\r\nauthorization: Bearer x\r\n\r\n" + LAST)
        (status, said), (_, last) = answers(connection)
    assert (status, said["body"]) == (200, "abcde")
    assert "authorization" not in said["headers"]
    assert last["path"] == "/last"


def test_requests_ahead_are_held_as_few_bytes_and_all_answered_in_order(service: Service) -> None:
    one = b"GET /echo HTTP/1.1\r\nhost: a\r\nx-padding: %s\r\n\r\n" % (b"a" * 200)
    with service.connected() as connection:
        connection.sendall(request("/wait"))
        service.waiting.acquire()
        many = 6_000  # 1.5 MB: more than is held
        sender = threading.Thread(target=connection.sendall, args=(one * many + LAST,))
        sender.start()
        protocol = service.protocol
        while not protocol.flow.full:
            service._started.wait(0.01)
        assert len(protocol._ahead) < MAX_AHEAD_BYTES + READ
        assert len(protocol.pipeline) <= PIECE_BYTES // len(one) + 1
        service.release.set()
        paths = [said["path"] for _, said in answers(connection)]
        sender.join()
    assert paths == ["/wait", *["/echo"] * many, "/last"]


def test_a_large_request_behind_another_is_read_when_its_turn_comes(service: Service) -> None:
    body = b"a" * 3_000_000
    with service.connected() as connection:
        sender = threading.Thread(target=connection.sendall, args=(request("/wait") + request("/echo", body) + LAST,))
        sender.start()
        service.waiting.acquire()
        while not service.protocol.flow.full:
            service._started.wait(0.01)
        assert len(service.protocol._ahead) < MAX_AHEAD_BYTES + READ
        service.release.set()
        (_, first), (_, second), (_, third) = answers(connection)
        sender.join()
    assert [said["path"] for said in (first, second, third)] == ["/wait", "/echo", "/last"]
    assert len(second["body"]) == len(body)


def test_bodies_of_many_small_chunks_arrive_whole(service: Service) -> None:
    chunks = b"".join(b"1\r\n%c\r\n" % (97 + n % 26) for n in range(100_000))
    head = b"POST /echo HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n"
    with service.connected() as connection:
        connection.sendall(head + chunks + b"0\r\n\r\n" + LAST)
        (_, said), _ = answers(connection)
    assert said["body"] == "".join(chr(97 + n % 26) for n in range(100_000))


def random_request(random_: random.Random, number: int) -> tuple[bytes, str]:
    """A request of one of many shapes, and the body that must arrive."""
    body = "".join(random_.choices("ab\r\n0;GET / HTTP/1.1", k=random_.choice([0, 1, 50, 1000, 5000, 70_000])))
    head = [b"POST /echo/%d HTTP/1.1" % number, b"Host: a"]
    if random_.random() < 0.3:
        head += [b"Connection: upgrade", b"Upgrade: h2c"]
    head += [b"X-Padding: " + b"p" * random_.choice([0, 10, 900, 5000])]
    if random_.random() < 0.5:
        return b"\r\n".join([*head, b"Content-Length: %d" % len(body), b"", b""]) + body.encode(), body
    sent, at = b"\r\n".join([*head, b"Transfer-Encoding: chunked", b"", b""]), 0
    while at < len(body):
        piece = body[at : at + random_.choice([1, 7, 1023, 1024, 40_000])].encode()
        extension = random_.choice([b"", b";a=b"])
        sent, at = sent + b"%x%s\r\n%s\r\n" % (len(piece), extension, piece), at + len(piece)
    trailer = random_.choice([b"", b"authorization: x\r\n", b"x-long: %s\r\n" % (b"t" * 3000)])
    return sent + b"0\r\n" + trailer + b"\r\n", body


@pytest.mark.parametrize("seed", range(4))
def test_requests_of_any_shape_cut_anywhere_arrive_as_they_were_sent(service: Service, seed: int) -> None:
    random_ = random.Random(seed)
    requests = [random_request(random_, number) for number in range(60)]
    sent = b"".join(request for request, _ in requests) + LAST
    with service.connected() as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

        def send() -> None:
            at = 0
            while at < len(sent):
                piece = sent[at : at + random_.choice([1, 3, 100, 1023, 1024, 1025, 65_536, 300_000])]
                connection.sendall(piece)
                at += len(piece)

        sender = threading.Thread(target=send)
        sender.start()
        *said, (_, last) = answers(connection)
        sender.join()
    assert last["path"] == "/last"
    assert [(answer["path"], answer["body"]) for _, answer in said] == [
        (f"/echo/{number}", body) for number, (_, body) in enumerate(requests)
    ]
    assert all({"x-long", "authorization"}.isdisjoint(answer["headers"]) for _, answer in said)


# Upgrades


@pytest.mark.parametrize("upgrade", [b"h2c", b"websocket", b"TLS/1.0", b"foo/2, bar", b""])
@pytest.mark.parametrize("split", [0, 5, 60, 200, 10_000], ids=lambda split: f"split{split}")
def test_an_upgrade_is_ignored_and_the_body_read(service: Service, upgrade: bytes, split: int) -> None:
    headers = (b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: " + upgrade, b"HTTP2-Settings: AAMAAABk")
    smuggled = b"GET /smuggled HTTP/1.1\r\nhost: a\r\n\r\n"  # a body, whatever it looks like
    sent = request("/echo", smuggled, *headers) + request("/again", b"b", *headers) + LAST
    with service.connected() as connection:
        connection.sendall(sent[:split])
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.sendall(sent[split:])
        (_, first), (_, second), (_, third) = answers(connection)
    assert (first["path"], first["body"]) == ("/echo", smuggled.decode())
    assert (second["path"], second["body"]) == ("/again", "b")
    assert third["path"] == "/last"
    assert "smuggled" not in "".join(service.paths)


def test_an_upgrade_of_a_chunked_request_is_ignored(service: Service) -> None:
    head, _, body = CHUNKED.partition(b"\r\n\r\n")
    with service.connected() as connection:
        connection.sendall(head + b"\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n")
        connection.sendall(body + b"0\r\n\r\n" + LAST)
        (_, said), _ = answers(connection)
    assert said["body"] == "abcde"


@pytest.mark.parametrize(
    ("sent", "status", "type_"),
    [
        (b"FOO BAR\r\n\r\n", 400, "malformed_http"),
        (b"\x16\x03\x01\x02\x00\x01", 400, "malformed_http"),  # TLS
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, "malformed_http"),
        (b"CONNECT a:80 HTTP/1.1\r\nhost: a\r\n\r\n", 405, "method_not_allowed"),
        (b"POST /echo HTTP/1.1\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n", 400, "malformed_http"),
        (b"POST /echo HTTP/1.1\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n", 400, "malformed_http"),
        (CHUNKED + b"no chunk\r\n", 400, "malformed_http"),
        (b"GET /echo HTTP/1.1\r\n" + b"a: b\r\n" * 300 + b"\r\n", 431, "headers_too_large"),
    ],
)
def test_what_is_no_request_is_refused_in_the_one_shape(service: Service, sent: bytes, status: int, type_: str) -> None:
    with service.connected() as connection:
        connection.sendall(sent)
        ((given, said),) = answers(connection)
    assert (given, said["error"]["type"]) == (status, type_)
    assert said["error"].keys() == {"type", "message", "param"}


def test_nonsense_after_a_request_is_refused_after_its_answer(service: Service) -> None:
    with service.connected() as connection:
        connection.sendall(request("/wait") + b"FOO BAR\r\n\r\n" + request("/echo"))
        service.waiting.acquire()
        service.release.set()
        (first, said), (second, refused) = answers(connection)
    assert (first, said["path"]) == (200, "/wait")
    assert (second, refused["error"]["type"]) == (400, "malformed_http")
    assert service.paths == ["/wait"]


# Clients that leave, or seem to


@pytest.mark.parametrize("ahead", [b"", request("/echo"), request("/echo") * 5], ids=["alone", "pipelined", "more"])
@pytest.mark.parametrize("at_once", [True, False])
def test_a_client_that_has_gone_is_noticed(service: Service, ahead: bytes, at_once: bool) -> None:
    with service.connected() as connection:
        connection.sendall(request("/wait") + (ahead if at_once else b""))
        service.waiting.acquire()
        if not at_once:
            connection.sendall(ahead)
            while ahead and not service.protocol.pipeline:
                service._started.wait(0.01)
    service.gone.acquire()
    assert service.paths == ["/wait"]


def test_a_client_that_closed_one_half_gets_its_answers(service: Service) -> None:
    with service.connected() as connection:
        connection.sendall(request("/wait") + request("/echo", b"b"))
        service.waiting.acquire()
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(25, socket.MSG_WAITALL) == b"HTTP/1.1 100 Continue\r\n\r\n"
        service.release.set()
        *_, (_, first), (_, second) = answers(connection)
    assert (first["path"], second["path"]) == ("/wait", "/echo")


def test_a_client_that_closed_one_half_and_then_goes_is_noticed(service: Service) -> None:
    with service.connected() as connection:
        connection.sendall(request("/wait"))
        service.waiting.acquire()
        connection.shutdown(socket.SHUT_WR)
        connection.recv(25, socket.MSG_WAITALL)
    service.gone.acquire()


@pytest.mark.parametrize("rest", [b"", request("/echo", b"abc")[:-1], b"POST /ec"])
def test_half_a_request_before_the_end_is_dropped(service: Service, rest: bytes) -> None:
    with service.connected() as connection:
        connection.sendall(request("/wait") + rest)
        service.waiting.acquire()
        connection.shutdown(socket.SHUT_WR)
        service.release.set()
        statuses = [status for status, _ in answers(connection)]
    assert statuses[-1] == 200
    assert set(statuses[:-1]) <= {100}


# Clients that are slow


def test_an_empty_line_does_not_keep_a_connection(make: Callable[..., Service]) -> None:
    """uvicorn's own limit for idle connections is 75 seconds, beyond that of a test."""
    with make(HASTY).connected() as connection:
        connection.sendall(request("/echo"))
        one_answer(connection)
        connection.sendall(b"\r\n")
        ((status, said),) = answers(connection)
    assert (status, said["error"]["type"]) == (408, "request_timeout")


def test_a_client_that_says_nothing_for_tls_is_let_go(make: Callable[..., Service], tmp_path: Path) -> None:
    certificate = tmp_path / "cert.pem", tmp_path / "key.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=localhost"
    files = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(certificate[1]), "-out", str(certificate[0])]
    subprocess.run([*command.split(), *files], capture_output=True, check=True)
    service = make(HASTY, certificate)
    with service.connected() as connection:
        assert everything(connection) == b""  # the limit of the test is the limit of its patience
    context = ssl.create_default_context(cafile=certificate[0])
    with service.connected() as plain, context.wrap_socket(plain, server_hostname="127.0.0.1") as connection:
        connection.sendall(request("/echo", b"b") + LAST)
        (_, said), _ = answers(connection)
    assert said["body"] == "b"


def test_a_request_that_waits_for_another_is_not_hurried(make: Callable[..., Service]) -> None:
    service = make(HASTY)
    with service.connected() as connection:
        connection.sendall(request("/wait") + request("/echo", b"abc")[:-1])
        service.waiting.acquire()
        timer = threading.Timer(2 * HASTY, service.release.set)
        timer.start()
        status, first = one_answer(connection)
        connection.sendall(b"c" + LAST)
        (_, second), _ = answers(connection)
        timer.join()
    assert (status, first["path"]) == (200, "/wait")
    assert (second["path"], second["body"]) == ("/echo", "abc")


# Real clients


JAVA = """
import java.net.URI;
import java.net.http.*;

public class Ask {
    public static void main(String[] urls) throws Exception {
        HttpClient client = HttpClient.newHttpClient();  // asks for HTTP/2 by an upgrade
        for (int number = 0; number < 3; number++) {
            HttpRequest request = HttpRequest.newBuilder(URI.create(urls[0]))
                .POST(HttpRequest.BodyPublishers.ofString("body " + number)).build();
            System.out.println(client.send(request, HttpResponse.BodyHandlers.ofString()).body());
        }
    }
}
"""


def test_the_http_client_of_java(service: Service, tmp_path: Path) -> None:
    java = tool("java")
    (tmp_path / "Ask.java").write_text(JAVA)
    command = [java, str(tmp_path / "Ask.java"), f"http://127.0.0.1:{service.port}/echo"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    said = [json.loads(line) for line in done.stdout.splitlines()]
    assert [answer["body"] for answer in said] == ["body 0", "body 1", "body 2"], done.stderr
    assert len(service.server.server_state.connections) <= 1


def test_curl_with_http2(service: Service) -> None:
    url = f"http://127.0.0.1:{service.port}/echo"
    command = [tool("curl"), "-sv", "--http2", url, "-d", "first", "--next", "-sv", "--http2", url, "-d", "second"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "Upgrade: h2c" in done.stderr
    assert "Re-using existing connection" in done.stderr
    assert [json.loads(part + "}")["body"] for part in done.stdout.split("}")[:-1]] == ["first", "second"]


def tool(name: str) -> str:
    found = shutil.which(name)
    if not found:
        assert not os.environ.get("CI"), f"{name} is missing"
        pytest.skip(f"needs {name}")
    return found


# What it rests on


def test_uvicorn_is_what_this_was_written_for() -> None:
    """When an update of uvicorn fails here: read what changed in `HttpToolsProtocol`, see whether `BoundedProtocol`
    still bounds all that it holds and whether uvicorn does by now, and write down here what it is today."""
    methods = {name for name, _ in inspect.getmembers(HttpToolsProtocol, inspect.isfunction)}
    assert methods - {name for name, _ in inspect.getmembers(asyncio.Protocol, inspect.isroutine)} == {
        "_get_upgrade",
        "_should_upgrade",
        "_should_upgrade_to_ws",
        "_start_asgi_task",
        "_unset_keepalive_if_required",
        "_unsupported_upgrade_warning",
        "handle_websocket_upgrade",
        "on_body",
        "on_header",
        "on_headers_complete",
        "on_message_begin",
        "on_message_complete",
        "on_response_complete",
        "on_url",
        "send_400_response",
        "shutdown",
        "timeout_keep_alive_handler",
    }
    overridden = {
        name
        for name, value in vars(BoundedProtocol).items()
        if inspect.isfunction(value) and name in dir(HttpToolsProtocol)
    }
    for name in overridden - {"on_header"}:
        ours, theirs = (
            inspect.signature(getattr(BoundedProtocol, name)),
            inspect.signature(getattr(HttpToolsProtocol, name)),
        )
        assert list(ours.parameters) == list(theirs.parameters), name
    assert set(inspect.signature(RequestResponseCycle.__init__).parameters) >= {"flow", "message_event", "on_response"}
    assert {"read_paused", "pause_reading", "resume_reading"} <= {*dir(FlowControl), "read_paused"}
    # The two that are replaced, not extended.
    assert "feed_data" in inspect.getsource(HttpToolsProtocol.data_received)
    assert inspect.getsource(HttpToolsProtocol.eof_received).strip().endswith("pass")
    assert httptools.HttpParserUpgrade.__mro__[1] is Exception


def test_the_bound_is_in_bytes_that_a_head_really_has() -> None:
    assert PIECE_BYTES < MAX_HEADER_BYTES <= MAX_AHEAD_BYTES
