"""Logs as one JSON object a line, with the ids of request and trace."""

from __future__ import annotations

import json
import logging
import logging.config
from contextvars import ContextVar
from datetime import UTC, datetime

request_id: ContextVar[str | None] = ContextVar("request_id", default=None)
trace_id: ContextVar[str | None] = ContextVar("trace_id", default=None)


class JsonFormatter(logging.Formatter):
    """`logging.info("...", extra={"fields": {...}})` adds the fields to the object."""

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        for identifier in (request_id, trace_id):
            if value := identifier.get():
                entry[identifier.name] = value
        entry |= getattr(record, "fields", {})
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str)


def configure_logging(level: str) -> None:
    """Everything of ours, of uvicorn and of OpenTelemetry, from `level` on, to standard error."""
    logger = {"handlers": ["stderr"], "level": level.upper(), "propagate": False}
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {"json": {"()": JsonFormatter}},
            "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "json"}},
            "loggers": {
                "app": logger,
                "sparse_encoder": logger,
                "opentelemetry": logger,
                "uvicorn": logger,
                "uvicorn.error": {"handlers": [], "propagate": True},
                # `middleware` logs each request itself.
                "uvicorn.access": {"handlers": [], "propagate": False},
            },
        }
    )
