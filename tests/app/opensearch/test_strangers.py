"""Something else than OpenSearch or the service answers at the address that was given."""

from __future__ import annotations

from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from app.opensearch.__main__ import main
from app.opensearch.facts import OpenSearchError
from app.opensearch.service import EncoderService


class Stranger(BaseHTTPRequestHandler):
    """Answers everything with one body."""

    body = b""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.body)))
        self.end_headers()
        self.wfile.write(self.body)

    do_POST = do_GET

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(params=[b"<html>hello</html>", b"[]", b'"text"', b"{}", b'{"version": "x", "model": {}, "limits": 1}'])
def stranger(request: pytest.FixtureRequest) -> Iterator[str]:
    handler = type("Handler", (Stranger,), {"body": request.param})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("command", ["check", "teardown"])
def test_a_stranger_in_place_of_opensearch_is_said(
    stranger: str, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, "--opensearch", stranger]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert stranger in error
    assert "9200" in error


def test_a_stranger_in_place_of_the_service_is_said(stranger: str) -> None:
    with pytest.raises(OpenSearchError, match="not as the service does: is --encoder right"):
        EncoderService(stranger).info()
    with pytest.raises(OpenSearchError, match="not as the service does: is --encoder right"):
        EncoderService(stranger).encode(["손해배상"])


def test_a_service_that_goes_away_is_said() -> None:
    with pytest.raises(OpenSearchError, match="does not answer"):
        EncoderService("http://127.0.0.1:9").encode(["손해배상"])


def test_a_tokenizer_that_cannot_be_written_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export-tokenizer", str(tmp_path / "none" / "queries.zip")]) == 1
    assert "none/queries.zip cannot be written" in capsys.readouterr().err
