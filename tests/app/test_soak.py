"""Five minutes of faults; `python -m benchmarks.soak` makes an hour of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.soak import Faults, soak


@pytest.mark.slow
@pytest.mark.soak
@pytest.mark.timeout(900)
async def test_every_promise_is_kept_under_faults(tmp_path: Path) -> None:
    report = await soak(tmp_path, seconds=300, seed=1)
    assert report["broken_promises"] == []
    assert len(report["faults"]) == sum(
        not name.startswith("_") and name not in ("all", "sent") for name in vars(Faults)
    )
    assert report["answered"] > 100
