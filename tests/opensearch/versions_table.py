"""Which tests ran on which OpenSearch: a table that a run writes (`--versions-table FILE`), for the documentation.

What stands there of other tests stays.
"""

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
    _begun: set[tuple[str, str]] = field(default_factory=set)

    def __post_init__(self) -> None:
        if self.target.is_file():
            self.rows = read(self.target.read_text(encoding="utf-8"))

    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """What is run again counts alone."""
        if column := next((str(value) for name, value in item.user_properties if name == PROPERTY), ""):
            self.begin(title(item.nodeid), column)

    def begin(self, name: str, column: str) -> None:
        if (name, column) not in self._begun:
            self._begun.add((name, column))
            self.rows.get(name, {}).pop(column, None)

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


def read(text: str) -> dict[str, dict[str, set[str]]]:
    """The rows that `table` wrote."""
    (_, *columns), _, *rows = (
        [cell.strip() for cell in line.split("|")[1:-1]] for line in text.split("\n\n")[0].splitlines()
    )
    return {
        name: {column: set(cell.split(", ")) for column, cell in zip(columns, cells, strict=True) if cell}
        for name, *cells in rows
    }


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
    return version if isinstance(version, str) else None
