"""A real S3 server (moto's) as a process of its own."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.request import Request, urlopen


@contextmanager
def s3_server() -> Iterator[dict[str, Any]]:
    """Options with which fsspec reaches it; it holds the bucket `models`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while True:
            assert server.poll() is None, "the S3 server ended"
            with socket.socket() as connection:
                if connection.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.02)
        endpoint = f"http://127.0.0.1:{port}"
        with urlopen(Request(f"{endpoint}/models", method="PUT")):
            pass
        yield {"key": "key", "secret": "secret", "endpoint_url": endpoint}
    finally:
        server.terminate()
        server.wait()
