"""A log whose reader is slow, gone or back: real pipes, as a container's runtime has them."""

from __future__ import annotations

import json
import logging
import os
import re
import select
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from app import logs
from app.logs import PatientHandler


@contextmanager
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    try:
        yield ends
    finally:
        for end in ends:
            os.close(end)


def logger_to(handler: PatientHandler) -> logging.Logger:
    logger = logging.Logger("test")
    logger.addHandler(handler)
    return logger


def test_lines_are_dropped_and_counted_while_nobody_reads_and_it_is_told_when_somebody_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(logs, "MAX_WAITING_BYTES", 100_000)
    monkeypatch.setattr(logs, "FLUSH_SECONDS", 0.01)
    dropped: list[None] = []
    with pipe() as (reading, writing):
        handler = PatientHandler(writing, lambda: dropped.append(None))
        logger = logger_to(handler)
        for number in range(300):  # the pipe holds 64 KiB
            logger.info("%d %s", number, "x" * 1000)
        handler.flush()  # which gives up
        assert 50 < len(dropped) < 250
        numbers: list[int] = []
        told = 0
        with os.fdopen(os.dup(reading), encoding="ascii") as file:
            while len(numbers) + told < 300:
                message = json.loads(file.readline())["message"]
                if found := re.fullmatch(r"(\d+) lines were dropped, since nobody read the log", message):
                    told += int(found[1])
                else:
                    numbers.append(int(message.split()[0]))
        assert told == len(dropped)
        assert numbers == sorted(set(numbers))
        handler.close()


def test_what_was_logged_is_written_at_the_end() -> None:
    with pipe() as (reading, writing):
        handler = PatientHandler(writing, lambda: None)
        logger = logger_to(handler)
        for number in range(20):
            logger.warning("%d", number)
        handler.flush()
        handler.close()
        lines = os.read(reading, 65536).splitlines()
    assert [json.loads(line)["message"] for line in lines] == [str(number) for number in range(20)]


def test_a_reader_that_is_gone_costs_lines_and_nothing_else() -> None:
    dropped: list[None] = []
    reading, writing = os.pipe()
    os.close(reading)
    handler = PatientHandler(writing, lambda: dropped.append(None))
    logger = logger_to(handler)
    for _ in range(100):
        logger.info("to nobody")
    handler.flush()  # returns when it knows
    assert len(dropped) == 100
    handler.close()
    os.close(writing)


def test_what_a_slow_reader_took_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "MAX_WAITING_BYTES", 500_000)
    dropped: list[None] = []
    with pipe() as (reading, writing):
        handler = PatientHandler(writing, lambda: dropped.append(None))
        logger = logger_to(handler)
        for _ in range(480):
            logger.info("x" * 900)
        received = 0
        while received < 300_000:
            received += len(os.read(reading, 65536))
        for _ in range(100):
            logger.info("x" * 900)
        assert dropped == []
        threading.Thread(target=handler.flush).start()
        with os.fdopen(os.dup(reading), "rb", buffering=0) as rest:
            while received < 580 * 900:
                received += len(rest.read(65536) or b"")
        handler.close()


def test_lines_of_requests_are_written_together_and_a_warning_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "LINGER_SECONDS", 3600.0)
    with pipe() as (reading, writing):
        handler = PatientHandler(writing, lambda: None)
        logger = logger_to(handler)
        for number in range(3):
            logger.info("%d", number)
        assert not select.select([reading], [], [], 0.1)[0]
        logger.warning("3")
        received = b""
        while received.count(b"\n") < 4:
            received += os.read(reading, 65536)
        assert [json.loads(line)["message"] for line in received.splitlines()] == ["0", "1", "2", "3"]
        monkeypatch.setattr(logs, "LINGER_SECONDS", 0.001)
        logger.info("4")  # which comes without anything after it
        assert json.loads(os.read(reading, 65536))["message"] == "4"
        handler.close()
