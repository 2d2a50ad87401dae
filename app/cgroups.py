"""The control groups (v2) around this process: what a container may use, which is less than the machine has."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

PROC, CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")


def groups(proc: Path = PROC, cgroups: Path = CGROUPS) -> Iterator[Path]:
    """Their directories, the innermost first, the root's last; none without Linux or a kernel with groups."""
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    except FileNotFoundError:
        return
    group = cgroups / next((line.removeprefix("0::/") for line in lines if line.startswith("0::/")), "")
    while group.is_relative_to(cgroups):
        yield group
        group = group.parent


def cpu_quota(proc: Path = PROC, cgroups: Path = CGROUPS) -> float | None:
    """Processors' worth of time that the process may use, by the tightest `cpu.max` around it; None for no limit."""
    quotas = []
    for group in groups(proc, cgroups):
        try:
            quota, period = (group / "cpu.max").read_text().split()
        except FileNotFoundError:  # the root group has none; nor has a machine with groups of version 1
            continue
        if quota != "max":
            quotas.append(int(quota) / int(period))
    return min(quotas, default=None)


def usable_cpus() -> int:
    """Processors that the process may run on."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS
        return os.cpu_count() or 1


def threads_within(quota: float | None, cpus: int) -> int:
    """Threads that compute all the time and stay within `quota`; 0, as many as there are cores, if it is no limit.

    One more would be stopped for the rest of each period, and all others wait for it.
    """
    return 0 if quota is None or quota >= cpus else max(1, int(quota))
