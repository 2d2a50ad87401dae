"""uvicorn's HTTP protocol, with bounds on what one connection may hold and for how long.

uvicorn itself keeps trailer fields and pipelined requests without end, waits for ever for the rest of a request and for
a client that does not read its answer, and loses the body of a request with `Upgrade`. What of its internals this rests
on is tested in `tests/app/web/test_protocol.py`: an update of uvicorn that changes them fails there, not in production.

Of one connection are held: a head and a trailer of `MAX_HEADER_BYTES` each, the body as far as the application lets it,
an answer, and what a client sends before it has its answer, of which no more than `MAX_AHEAD_BYTES` and one read is
taken from the kernel; about `PIECE_BYTES` of that are parsed, the rest are bytes.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

import httptools
import uvloop
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from app.errors import error_response

MAX_HEADER_BYTES = 64 * 1024
MAX_HEADERS = 256
MAX_AHEAD_BYTES = 64 * 1024
#: Given to the parser at once, and so the most that is parsed of requests whose turn has not come.
PIECE_BYTES = 1024
#: The same within a body whose length is known, which is no request.
BODY_PIECE_BYTES = 64 * 1024
#: Between two looks whether a client that sends no more is still there, and the looks before which it is sent an
#: interim answer: after about 0, 1, 4 and 16 s. Some clients take no more than five of those for one request. The look
#: after that comes sooner: a near machine refuses it at once, and what is computed meanwhile is for nobody.
LOOK_SECONDS, NEXT_LOOK_SECONDS = 0.25, 0.01
PROBES = (0, 4, 16, 64)

log = logging.getLogger(__name__)


class Refusal(httptools.HttpParserError):
    """Raised while parsing: the request is answered with this, and the connection ends."""

    def __init__(self, status: HTTPStatus, type_: str, message: str) -> None:
        super().__init__(message)
        self.type = type_
        answer = error_response(status, type_, message, headers={"Connection": "close"})
        headers = b"".join(b"%s: %s\r\n" % header for header in answer.raw_headers)
        line = f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode("ascii")
        self.answer = line + headers + b"\r\n" + bytes(answer.body)


class Flow(FlowControl):
    """Whoever wants to read on, nothing is read while `full`."""

    full = False

    def resume_reading(self) -> None:
        if not self.full:
            super().resume_reading()


class BoundedProtocol(HttpToolsProtocol):
    """A client has `client_timeout_seconds` for the headers of a request, as long for its body, and as long to read.

    The time is for the whole of it, so that a byte now and then does not help. A client that exceeds it while it sends
    gets 408, one that does not read is cut off. An upgrade is ignored, as RFC 9110 (7.8) has it, and the request read.
    A client that closed its sending half gets the answers that it waits for.
    """

    client_timeout_seconds: float
    count_refusal: Callable[[str], None]  #: by its type, or `unread_answer`
    flow: Flow

    _sending: asyncio.TimerHandle | None = None
    _reading: asyncio.TimerHandle | None = None
    _leaving: asyncio.TimerHandle | None = None
    _active: RequestResponseCycle | None = None  #: the request that is answered, or was last
    _ahead = b""  #: received and not parsed
    _refusal: Refusal | None = None  #: to be sent when the requests before it are answered
    _ended = False  #: the client sends no more
    _looks = 0  #: since then
    _in_head = True
    _head_bytes = 0  #: of the head, or of what is not the body after it, since the last byte that was
    _body_bytes = 0  #: missing of a body whose length is known

    @classmethod
    def with_timeout(
        cls, seconds: float, count_refusal: Callable[[str], None] = lambda _: None
    ) -> type[BoundedProtocol]:
        values = {"client_timeout_seconds": seconds, "count_refusal": staticmethod(count_refusal)}
        return type(cls.__name__, (cls,), values)

    # The connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.flow = Flow(transport)
        self._expect_more()

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel_timers()
        waiting = [cycle for cycle, _ in self.pipeline]
        for cycle in [self._active, *waiting] if self._active else waiting:
            if not cycle.response_complete:  # uvicorn itself tells the newest one only
                cycle.disconnected = True
                cycle.message_event.set()
        self._ahead = b""
        super().connection_lost(exc)

    def eof_received(self) -> bool | None:  # type: ignore[override]
        """True, to keep the connection, while a request that came whole waits for its answer.

        A client that has gone ends its sending in the same way. It is told from one that waits by interim answers,
        which its machine refuses. Over TLS there is no such half.
        """
        active = self._active
        if self.scheme == "https" or active is None or active.response_complete or active.more_body:
            return None
        self._ended = self.flow.full = True
        self._cancel_sending()
        self._look_whether_gone()
        return True

    def data_received(self, data: bytes) -> None:
        if self._refusal:
            return
        if self._sending is None and self._is_idle():  # not the timer of idle connections: it has begun to send
            self._expect_more()
        self._ahead = self._ahead + data if self._ahead else data
        self._parse()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._reading = self.loop.call_later(self.client_timeout_seconds, self._cut_off)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._reading:
            self._reading.cancel()

    # Parsing

    def _parse(self) -> None:
        """What was received, until a request has to wait for the answer to the one before it."""
        data, at = memoryview(self._ahead), 0
        self._ahead = b""
        while at < len(data) and not self.pipeline and not self._refusal:
            most = max(PIECE_BYTES, min(self._body_bytes, BODY_PIECE_BYTES))
            at += self._feed(data[at : at + most])
        if not self._refusal:
            self._ahead = bytes(data[at:])
            if len(self._ahead) >= MAX_AHEAD_BYTES:
                self.flow.pause_reading()
                self.flow.full = True
            else:
                self.flow.full = self._ended

    def _feed(self, piece: memoryview) -> int:
        """The bytes of `piece` that were parsed, which is all unless it ends a head with an upgrade."""
        body_bytes = self._body_bytes
        self._head_bytes += len(piece)
        try:
            try:
                self.parser.feed_data(piece)
            except httptools.HttpParserUpgrade as upgrade:
                self._parse_without_upgrade()
                return int(upgrade.args[0])
            if self._head_bytes > MAX_HEADER_BYTES and body_bytes == 0:
                raise Refusal(
                    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
                    "headers_too_large",
                    f"the headers, or what follows the body, have more than {MAX_HEADER_BYTES} bytes",
                )
        except httptools.HttpParserError as error:
            self._refuse(_refusal(error))
        return len(piece)

    def _parse_without_upgrade(self) -> None:
        """The head that was parsed last, once more, since the parser takes what follows an upgrade for no body."""
        version = self.parser.get_http_version().encode("ascii")
        lines = [b"%s %s HTTP/%s" % (self.parser.get_method(), self.url, version)]
        lines += [b"%s: %s" % header for header in self.headers if header[0] != b"upgrade"]
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does
        self.parser.feed_data(b"\r\n".join(lines) + b"\r\n\r\n")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._unset_keepalive_if_required()
        self._in_head, self._head_bytes, self._body_bytes = True, 0, 0
        if self._sending is None:  # the first request has the time since the connection
            self._expect_more()

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._in_head:  # a trailer: nothing here reads one, and it must not pass for a header
            return
        super().on_header(name, value)
        if len(self.headers) > MAX_HEADERS:
            raise Refusal(
                HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
                "headers_too_large",
                f"the request has more than {MAX_HEADERS} headers",
            )
        if name.lower() == b"content-length":
            self._body_bytes = int(value)

    def on_headers_complete(self) -> None:
        if self.parser.should_upgrade():
            if self.parser.get_method() == b"CONNECT":
                raise Refusal(HTTPStatus.METHOD_NOT_ALLOWED, "method_not_allowed", "this is no proxy")
            return
        super().on_headers_complete()
        if self.pipeline:  # uvicorn reads no more then, and would not see the client leave
            self.flow.resume_reading()
        self._in_head, self._head_bytes = False, 0
        self._expect_more()

    def on_body(self, body: bytes) -> None:
        super().on_body(body)
        self._head_bytes = 0
        self._body_bytes = max(0, self._body_bytes - len(body))

    def on_message_complete(self) -> None:
        if self._in_head:  # an upgrade, which is parsed again
            return
        super().on_message_complete()
        self.cycle.more_body = False  # which uvicorn leaves alone if the answer went first
        self._body_bytes = 0
        self._cancel_sending()

    # Answering

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._active = cycle
        super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.is_closing():
            return
        if self._ahead:
            self._parse()
            self.flow.resume_reading()
        if self._sending is not None:  # a request is being received: the connection is not idle
            self._unset_keepalive_if_required()
        if self._is_idle() and self._refusal:
            self._end(self._refusal)
        elif self._ended and (self._is_idle() or (self._active is not None and self._active.more_body)):
            self.transport.close()

    def _is_idle(self) -> bool:
        """No request is being answered or waits for it."""
        return not self.pipeline and (self._active is None or self._active.response_complete)

    def _refuse(self, refusal: Refusal) -> None:
        """Answers in the turn of the request that was being received, and closes. Nothing more is received."""
        if self.transport.is_closing():
            return
        log.info("refused on the connection: %s", refusal)
        self.count_refusal(refusal.type)
        self._cancel_sending()
        self._ahead, self._refusal = b"", refusal
        if self.pipeline and self.pipeline[0][0].more_body:
            self.pipeline.popleft()  # the newest, of which the rest is not read
        if self._is_idle() or (self._active is not None and self._active.more_body):
            self._end(refusal)

    def _end(self, refusal: Refusal) -> None:
        """The application sees a client that has gone, if it was asked at all."""
        self._cancel_timers()
        if self._active is None or not (self._active.more_body and self._active.response_started):
            self.transport.write(refusal.answer)
        self.transport.close()

    # Patience

    def timeout_keep_alive_handler(self) -> None:
        if self.transport.get_write_buffer_size():  # `close` would wait until the client reads
            self._cut_off()
        super().timeout_keep_alive_handler()

    def _expect_more(self) -> None:
        self._cancel_sending()
        self._sending = self.loop.call_later(self.client_timeout_seconds, self._sends_too_slowly)

    def _sends_too_slowly(self) -> None:
        if self.flow.read_paused or self.pipeline:  # it is us who do not read: one before it is still being answered
            self._expect_more()
            return
        what = f"the request was not complete within {self.client_timeout_seconds:g} s: send less at once, or faster"
        self._refuse(Refusal(HTTPStatus.REQUEST_TIMEOUT, "request_timeout", what))

    def _cut_off(self) -> None:
        log.info("a client did not read its answer within %g s", self.client_timeout_seconds)
        self.count_refusal("unread_answer")
        self.transport.abort()

    def _look_whether_gone(self) -> None:
        if self.transport.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self.transport.abort()
            return
        active = self._active
        assert active is not None
        asks = self._looks in PROBES and not active.response_started and active.scope["http_version"] == "1.1"
        if asks:
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self._looks += 1
        self._leaving = self.loop.call_later(NEXT_LOOK_SECONDS if asks else LOOK_SECONDS, self._look_whether_gone)

    def _cancel_sending(self) -> None:
        if self._sending:
            self._sending.cancel()
            self._sending = None

    def _cancel_timers(self) -> None:
        self._cancel_sending()
        for timer in (self._reading, self._leaving):
            if timer:
                timer.cancel()
        self._reading = self._leaving = None


def _refusal(error: httptools.HttpParserError) -> Refusal:
    """What to answer to an error of the parser, or of one of the methods that it calls."""
    for known in (error, error.__context__):
        if isinstance(known, Refusal):
            return known
    return Refusal(
        HTTPStatus.BAD_REQUEST, "malformed_http", f"this is no HTTP/1.1 request ({error}): see RFC 9112 for its syntax"
    )


def loop_with_timeout(handshake_seconds: float) -> Callable[[], asyncio.AbstractEventLoop]:
    """Makes an event loop on which a TLS handshake takes no longer than that; uvicorn has no setting for it."""

    class Loop(uvloop.Loop):
        async def create_server(  # type: ignore[override]
            self, *args: Any, **options: Any
        ) -> asyncio.AbstractServer:
            if options.get("ssl"):
                options["ssl_handshake_timeout"] = handshake_seconds
            return await super().create_server(*args, **options)

    return Loop
