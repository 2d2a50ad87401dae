"""The table of what ran on which OpenSearch: how it is made."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import pytest

from tests.opensearch.versions_table import PROPERTY, VersionsTable, table


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
