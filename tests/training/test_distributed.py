"""Two processes with half a batch each train as one process with the whole batch does."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "training" / "sample" / "recipe.toml"


@pytest.mark.timeout(300)
def test_two_processes_give_the_losses_and_weights_of_one(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    text = RECIPE.read_text(encoding="utf-8").replace("steps = 20\n", "steps = 6\n", 1)
    recipe.write_text(text.replace("save_steps = 10", "save_steps = 6"), encoding="utf-8")
    alone, together = tmp_path / "alone", tmp_path / "together"
    train = ["-m", "training", "train", str(recipe), "--run"]
    spread = [
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--standalone",
        "-m",
        "--",
        *train[1:],
        str(together),
    ]
    for arguments in ([*train, str(alone)], spread):
        done = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
    of_one, of_two = (
        [row for row in json.loads((run / "train" / "log.json").read_text()) if "loss" in row]
        for run in (alone, together)
    )
    assert len(of_one) == len(of_two) == 6
    for one, two in zip(of_one, of_two, strict=True):
        parts = set(one) - {"grad_norm", "epoch"}
        assert parts == set(two) - {"grad_norm", "epoch"}
        assert {name: two[name] for name in parts} == pytest.approx({name: one[name] for name in parts}, rel=2e-3)
    weights, other = (load_file(run / "train" / "final" / "model.safetensors") for run in (alone, together))
    for name, tensor in weights.items():
        torch.testing.assert_close(other[name], tensor, rtol=1e-2, atol=2e-4, msg=name)
