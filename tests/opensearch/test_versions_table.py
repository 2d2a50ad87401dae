"""The table of what ran on which OpenSearch: how it is made."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import pytest

from tests.opensearch.versions_table import PROPERTY, VersionsTable, read, table


def report(
    test: str,
    column: str,
    when: Literal["setup", "call"] = "call",
    outcome: Literal["passed", "failed"] = "passed",
    *own: str,
) -> pytest.TestReport:
    properties = [(PROPERTY, value) for value in (column, *own) if value]
    nodeid = f"tests/opensearch/test_x.py::test_{test}[{column}]"
    return pytest.TestReport(nodeid, ("", 0, ""), {}, outcome, None, when, user_properties=properties)


def test_a_cell_says_what_became_of_a_test_and_is_empty_where_it_did_not_run(tmp_path: Path) -> None:
    made = VersionsTable(tmp_path / "table.md")
    for one in (
        report("a_thing_works", "3.6.0", "setup"),
        report("a_thing_works", "3.6.0"),
        report("a_thing_works", "2.19.1", "call", "passed", "refused"),
        report("a_thing_works", "2.19.1"),
        report("nodes", "3.6.0", "setup", "failed"),
        report("pure", ""),
    ):
        made.pytest_runtest_logreport(one)
    assert table(made.rows, datetime(2026, 11, 30, tzinfo=UTC)).splitlines() == [
        "|  | 2.19.1 | 3.6.0 |",
        "| --- | --- | --- |",
        "| a thing works | refused, run | run |",
        "| nodes |  | FAILED |",
        "",
        "2026-11-30, `make versions-table`.",
    ]


def test_a_run_of_some_tests_leaves_the_rows_of_others(tmp_path: Path) -> None:
    rows = {"a thing works": {"2.19.1": {"refused", "run"}, "3.6.0": {"FAILED"}}, "nodes": {"3.6.0": {"run"}}}
    target = tmp_path / "table.md"
    target.write_text(table(rows, datetime(2026, 11, 29, tzinfo=UTC)), encoding="utf-8")
    assert read(target.read_text(encoding="utf-8")) == rows
    made = VersionsTable(target)
    made.begin("a thing works", "3.6.0")
    made.pytest_runtest_logreport(report("a_thing_works", "3.6.0"))
    made.begin("a thing works", "3.6.0")  # another case of it
    assert made.rows == {**rows, "a thing works": {"2.19.1": {"refused", "run"}, "3.6.0": {"run"}}}
