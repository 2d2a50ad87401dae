"""Checks that need no running service."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from app.models.loaded import ModelError, check_memory
from app.models.memory import available_bytes, give_back_freed_memory
from app.versions.gates import Rules, check_lengths
from app.versions.watching import Snapshot
from sparse_encoder.artifact import read_artifact

RULES = Rules(
    allow_vocabulary_change=False,
    canary_min_active_tokens=2,
    canary_max_active_tokens=2000,
    canary_min_overlap=0.3,
    max_batch_tokens=64,
)


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


def test_the_memory_message_has_both_figures(tiny_artifact: Path) -> None:
    manifest = read_artifact(tiny_artifact).manifest
    weights = manifest.files["model.safetensors"]
    manifest = replace(manifest, files={**manifest.files, "model.safetensors": replace(weights, bytes=200_000_000)})
    check_memory(manifest.weight_bytes, 540_000_000)
    with pytest.raises(ModelError, match=r"takes up to 540 MB, 539 MB are available: raise"):
        check_memory(manifest.weight_bytes, 539_400_000)


def test_a_budget_that_the_longest_text_exceeds_is_refused(tiny_artifact: Path) -> None:
    manifest = read_artifact(tiny_artifact).manifest
    check_lengths(manifest, RULES)
    with pytest.raises(ModelError, match="can have 64 tokens, but max_batch_tokens is 63: raise it"):
        check_lengths(manifest, replace(RULES, max_batch_tokens=63))


def test_an_unknown_version_is_not_answered_with_a_thousand_names() -> None:
    snapshot = Snapshot({}, tuple(f"v{n:04}" for n in range(1000)))
    with pytest.raises(Exception, match=r"versions: v0999, v0998, .*, v0980 and 980 older ones; aliases: none"):
        snapshot.resolve("w" * 10_000)
