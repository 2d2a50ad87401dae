"""How much memory a process has, as Linux says."""

from __future__ import annotations

from pathlib import Path


def megabytes(pid: int | str, field: str) -> float:
    """`field`: of `/proc/PID/status`, such as VmRSS (resident now) or VmHWM (at its peak)."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024 / 1e6


def forget_peak(pid: int) -> None:
    """From now on VmHWM is the peak since now."""
    Path(f"/proc/{pid}/clear_refs").write_text("5", encoding="ascii")
