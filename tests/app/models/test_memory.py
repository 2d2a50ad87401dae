"""How much memory is left, by the files of Linux and without them."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path

from app.models.memory import available_bytes, give_back_freed_memory, settled


def machine(root: Path, available_kb: int, groups: dict[str, tuple[str, int, int]], own: str) -> tuple[Path, Path]:
    """Files as Linux has them. `groups`: path of a control group -> limit, use, clean file cache."""
    proc, cgroups = root / "proc", root / "cgroup"
    (proc / "self").mkdir(parents=True)
    cgroups.mkdir()
    (proc / "meminfo").write_text(f"MemTotal:       9999999 kB\nMemAvailable:   {available_kb} kB\n")
    (proc / "self" / "cgroup").write_text(f"4:memory:/old\n0::/{own}\n")
    for path, (limit, used, cache) in groups.items():
        (cgroups / path).mkdir(parents=True, exist_ok=True)
        (cgroups / path / "memory.max").write_text(f"{limit}\n")
        (cgroups / path / "memory.current").write_text(f"{used}\n")
        (cgroups / path / "memory.stat").write_text(f"anon 1\ninactive_file {cache}\n")
    return proc, cgroups


def test_the_machine_is_the_limit_if_no_group_has_one(tmp_path: Path) -> None:
    assert available_bytes(*machine(tmp_path, 1000, {"pod": ("max", 5, 0)}, "pod")) == 1_024_000


def test_the_tightest_group_around_the_process_is_the_limit_and_clean_cache_is_room(tmp_path: Path) -> None:
    groups = {"pod": ("100000", 90_000, 5_000), "pod/container": ("900000", 1, 0)}
    assert available_bytes(*machine(tmp_path, 1000, groups, "pod/container")) == 15_000


def test_a_container_sees_its_own_group_as_the_root(tmp_path: Path) -> None:
    assert available_bytes(*machine(tmp_path, 1000, {"": ("100000", 120_000, 0)}, "")) == 0


def test_the_real_files_can_be_read() -> None:
    assert available_bytes() > 0
    give_back_freed_memory()


def test_where_there_is_no_proc_it_is_what_the_machine_has(tmp_path: Path) -> None:
    assert available_bytes(tmp_path, tmp_path) > 100_000_000


def test_a_kernel_without_control_groups_limits_nothing(tmp_path: Path) -> None:
    proc, cgroups = machine(tmp_path, 1000, {}, "")
    (proc / "self" / "cgroup").unlink()
    assert available_bytes(proc, cgroups) == 1_024_000


def test_what_is_in_memory_is_not_looked_at_by_the_collector_meanwhile() -> None:
    class Circle:
        def __init__(self) -> None:
            self.self = self

    gone = weakref.ref(Circle())
    kept = Circle()

    def is_looked_at() -> bool:  # of others `==` may do anything
        return any(found is kept for found in gc.get_objects())

    assert is_looked_at()
    with settled():
        assert gone() is None
        assert not is_looked_at()
    assert is_looked_at()
