"""Which tests ran on which OpenSearch: a table that a run writes (`--versions-table FILE`), for the documentation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import pytest

PROPERTY = "opensearch"  #: of a report: the column it belongs to, or what became of the test, if it says so itself
REFUSED = "refused"
COMMAND = "make versions-table"


@dataclass
class VersionsTable:
    """Collects outcomes; a plugin of pytest's."""

    target: Path
    rows: dict[str, dict[str, set[str]]] = field(default_factory=dict)  #: test -> column -> outcomes

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        column, *own = [str(value) for name, value in report.user_properties if name == PROPERTY] or [""]
        if column and (report.when == "call" or not report.passed):
            outcome = {"passed": own[0] if own else "run", "failed": "FAILED", "skipped": "left out"}[report.outcome]
            cells = self.rows.setdefault(title(report.nodeid), {})
            cells.setdefault(column, set()).add(outcome)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if not hasattr(session.config, "workerinput"):  # a process of xdist's leaves it to the one that started it
            self.target.write_text(table(self.rows, datetime.now(UTC)), encoding="utf-8")


def title(nodeid: str) -> str:
    """`tests/opensearch/test_x.py::test_what_is_tested[3.6.0]` -> `what is tested`."""
    return nodeid.rpartition("::")[2].partition("[")[0].removeprefix("test_").replace("_", " ")


def table(rows: Mapping[str, Mapping[str, set[str]]], when: datetime) -> str:
    """Rows in the order of the tests, columns in that of the alphabet; an empty cell is a test for other versions."""
    columns = sorted({column for cells in rows.values() for column in cells})
    lines = [["", *columns], ["---"] * (1 + len(columns))]
    lines += [[name, *(", ".join(sorted(cells.get(column, ()))) for column in columns)] for name, cells in rows.items()]
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"{text}\n\n{when:%Y-%m-%d}, `{COMMAND}`.\n"


def column_of(fixtures: Sequence[str], params: Mapping[str, object]) -> str | None:
    """Of a test with these fixtures and parameters; None if it needs no OpenSearch."""
    if "secured" in fixtures:
        from tests.opensearch.secured import VERSION

        return f"{VERSION} with security"
    version = params.get("live", params.get("version"))
    return None if version is None else str(version)
