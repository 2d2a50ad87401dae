"""How many threads compute, by the files of Linux: quotas of control groups cannot be made without rights."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.cgroups import cpu_quota, threads_within, usable_cpus
from app.main import create_app
from app.settings import Settings


def machine(root: Path, quotas: dict[str, str], own: str) -> tuple[Path, Path]:
    """`quotas`: path of a control group -> its cpu.max."""
    (root / "proc" / "self").mkdir(parents=True)
    (root / "proc" / "self" / "cgroup").write_text(f"4:cpu:/old\n0::/{own}\n")
    for path, quota in quotas.items():
        (root / "cgroup" / path).mkdir(parents=True, exist_ok=True)
        (root / "cgroup" / path / "cpu.max").write_text(f"{quota}\n")
    return root / "proc", root / "cgroup"


@pytest.mark.parametrize(
    ("quotas", "own", "quota"),
    [
        ({"pod": "max 100000", "pod/container": "max 100000"}, "pod/container", None),
        ({"pod": "150000 100000", "pod/container": "400000 100000"}, "pod/container", 1.5),  # the tightest
        ({"": "200000 50000"}, "", 4),  # a container sees its own group as the root
        ({}, "", None),
    ],
)
def test_the_tightest_quota_around_the_process_counts(
    tmp_path: Path, quotas: dict[str, str], own: str, quota: float | None
) -> None:
    assert cpu_quota(*machine(tmp_path, quotas, own)) == quota


def test_without_control_groups_nothing_is_limited(tmp_path: Path) -> None:
    assert cpu_quota(tmp_path, tmp_path) is None
    assert usable_cpus() >= 1
    cpu_quota()  # the real files can be read


@pytest.mark.parametrize(
    ("quota", "cpus", "threads"), [(None, 8, 0), (8.0, 8, 0), (16.0, 8, 0), (3.9, 8, 3), (1.5, 8, 1), (0.2, 8, 1)]
)
def test_threads_stay_within_the_quota(quota: float | None, cpus: int, threads: int) -> None:
    assert threads_within(quota, cpus) == threads


@pytest.mark.parametrize(("flag", "threads", "warned"), [(0, 2, False), (1, 1, False), (6, 6, True)])
def test_the_log_says_what_was_found(
    flag: int,
    threads: int,
    warned: bool,
    tiny_artifact: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("app.main.cpu_quota", lambda: 2.5)
    monkeypatch.setattr("app.main.usable_cpus", lambda: 64)
    monkeypatch.setattr("app.main.configure_logging", lambda *_: None)
    caplog.set_level("INFO", "app")
    create_app(Settings(model=str(tiny_artifact), encoder_threads=flag))
    (found,) = (record for record in caplog.records if record.getMessage() == "processors found")
    fields: dict[str, object] = found.__dict__["fields"]
    assert fields == {"cpus": 64, "cpu_quota": 2.5, "encoder_threads": threads}
    assert ("will be stopped in turn" in caplog.text) == warned
