"""uvicorn's HTTP protocol, without patience for clients that hold a connection and do not use it.

uvicorn itself waits for ever for the rest of a request, and for a client that does not read its answer.
"""

from __future__ import annotations

import asyncio
import logging
from http import HTTPStatus

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from app.errors import error_response

MAX_HEADER_BYTES = 64 * 1024

log = logging.getLogger(__name__)


class ImpatientProtocol(HttpToolsProtocol):
    """A client has `client_timeout_seconds` for the headers of a request, as long for its body, and as long to read.

    The time is for the whole of it, so that a byte now and then does not help. A client that exceeds it while it sends
    gets 408, one that does not read is cut off.
    """

    client_timeout_seconds: float

    _sending: asyncio.TimerHandle | None = None
    _reading: asyncio.TimerHandle | None = None
    _header_bytes = 0
    _in_headers = True

    @classmethod
    def with_timeout(cls, seconds: float) -> type[ImpatientProtocol]:
        return type(cls.__name__, (cls,), {"client_timeout_seconds": seconds})

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect_more()

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel_timers()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        in_headers = self._in_headers
        super().data_received(data)
        if in_headers and self._in_headers:
            self._header_bytes += len(data)
            if self._header_bytes > MAX_HEADER_BYTES:
                self._refuse(
                    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
                    "headers_too_large",
                    f"the headers have more than {MAX_HEADER_BYTES} bytes",
                )

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_headers = True
        if self._sending is None:  # the first request has the time since the connection
            self._expect_more()

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        self._in_headers, self._header_bytes = False, 0
        self._expect_more()

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._cancel_sending()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._reading = self.loop.call_later(self.client_timeout_seconds, self._cut_off)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._reading:
            self._reading.cancel()

    def timeout_keep_alive_handler(self) -> None:
        if self.transport.get_write_buffer_size():  # `close` would wait until the client reads
            self._cut_off()
        super().timeout_keep_alive_handler()

    def _expect_more(self) -> None:
        self._cancel_sending()
        self._sending = self.loop.call_later(self.client_timeout_seconds, self._sends_too_slowly)

    def _sends_too_slowly(self) -> None:
        if self.flow.read_paused:  # it is us who do not read: a request before this one is still being answered
            self._expect_more()
            return
        log.info("a client did not send its request within %g s", self.client_timeout_seconds)
        what = f"the request was not complete within {self.client_timeout_seconds:g} s: send less at once, or faster"
        self._refuse(HTTPStatus.REQUEST_TIMEOUT, "request_timeout", what)

    def _refuse(self, status: HTTPStatus, type_: str, message: str) -> None:
        """Answers, unless an answer is on its way, and closes. The application sees a client that has gone."""
        self._cancel_timers()
        if self.transport.is_closing():
            return
        if self.cycle is None or self.cycle.response_complete or not self.cycle.response_started:
            answer = error_response(status, type_, message, headers={"Connection": "close"})
            headers = b"".join(b"%s: %s\r\n" % header for header in answer.raw_headers)
            line = f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode("ascii")
            self.transport.write(line + headers + b"\r\n" + bytes(answer.body))
        self.transport.close()

    def _cut_off(self) -> None:
        log.info("a client did not read its answer within %g s", self.client_timeout_seconds)
        self.transport.abort()

    def _cancel_sending(self) -> None:
        if self._sending:
            self._sending.cancel()
            self._sending = None

    def _cancel_timers(self) -> None:
        self._cancel_sending()
        if self._reading:
            self._reading.cancel()
            self._reading = None
