"""How much memory is left, and giving back what was freed."""

from __future__ import annotations

import ctypes
import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from app.cgroups import CGROUPS, PROC, groups


def available_bytes(proc: Path = PROC, cgroups: Path = CGROUPS) -> int:
    """Bytes that this process can still take: of the machine, or of a control group (v2) around it, if that is less.

    Where the system does not say what is left, what the machine has.
    """
    return min([_machine(proc), *_groups(proc, cgroups)])


def give_back_freed_memory() -> None:
    """The allocator keeps freed memory unless told; only glibc can be told."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


@contextmanager
def settled() -> Iterator[None]:
    """Garbage is collected, and what is left then is not looked at meanwhile. Else the collector stops all threads for
    50 ms every thousand requests, to go through all that was imported."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _machine(proc: Path) -> int:
    if not (proc / "meminfo").exists():  # macOS: all that it has, since it does not say how much is taken
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    fields = dict(line.split(":", 1) for line in (proc / "meminfo").read_text().splitlines())
    return int(fields["MemAvailable"].split()[0]) * 1024


def _groups(proc: Path, cgroups: Path) -> Iterator[int]:
    """Room in each control group around this process that has a limit. Clean file cache counts as room."""
    for group in groups(proc, cgroups):
        try:
            limit = (group / "memory.max").read_text().strip()
            if limit != "max":
                statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
                used = int((group / "memory.current").read_text()) - int(statistics["inactive_file"])
                yield max(0, int(limit) - used)
        except FileNotFoundError:  # the root group has no limit; nor has a machine with groups of version 1
            pass
