"""`python -m app`: the service on uvicorn. `--help` lists the flags."""

from __future__ import annotations

import signal
import sys
from types import FrameType

import uvicorn
from pydantic import ValidationError
from pydantic_settings import CliApp, SettingsError

from app.main import create_app
from app.metrics import Metrics
from app.settings import Settings, complaint
from app.web.protocol import BoundedProtocol, loop_with_timeout


def main() -> None:
    try:
        settings = CliApp.run(Settings)
    except (ValidationError, SettingsError) as error:
        raise SystemExit(f"wrong settings:\n{complaint(error)}") from None
    # uvicorn raises the signal that stopped it once more when it is done; an orderly stop is a success.
    signal.signal(signal.SIGTERM, _exit)
    app = create_app(settings)
    metrics: Metrics = app.state.metrics
    uvicorn.run(
        app,
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=bool(settings.trusted_proxies),
        forwarded_allow_ips=settings.trusted_proxies,
        http=BoundedProtocol.with_timeout(settings.client_timeout_seconds, metrics.count_connection_refusal),
        loop=loop_with_timeout(settings.client_timeout_seconds),  # type: ignore[arg-type]  # factories are taken too
        ws="none",
        ssl_certfile=settings.ssl_certfile,
        ssl_keyfile=settings.ssl_keyfile,
        timeout_keep_alive=75,  # s; OpenSearch reuses a connection for 60
        timeout_graceful_shutdown=settings.shutdown_grace_seconds,
    )


def _exit(signum: int, frame: FrameType | None) -> None:
    sys.exit(0)


if __name__ == "__main__":
    main()
