"""Memory that a tensor leaves is taken by the next, so the system has no page to make."""

import resource
import subprocess
import sys

import pytest

_TWICE = """
import resource, sys, torch
if sys.argv[1] == "kept":
    from training.allocator import keep_freed_memory
    keep_freed_memory()
for _ in range(2):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    tensor = torch.ones(64 * 2**20 // 4)
    del tensor
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(way: str) -> list[int]:
    done = subprocess.run([sys.executable, "-c", _TWICE, way], check=True, capture_output=True, text=True)
    return [int(line) for line in done.stdout.split()]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc only")
def test_a_second_tensor_takes_the_memory_of_the_first() -> None:
    pages = 64 * 2**20 // resource.getpagesize()
    assert faults("mapped")[1] >= pages / 2
    assert faults("kept")[1] < pages / 20
