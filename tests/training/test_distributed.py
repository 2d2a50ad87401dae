"""Two processes with half a batch each train as one process with the whole batch does."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sparse_encoder.store import Store
from sparse_encoder.tokenizer import Tokenizer
from tests.tiny import SENTENCES, publish
from tests.training.commands import ROOT, recipe_with
from training.fit import unused_parameters
from training.module import TASKS, load_module
from training.vocabulary import Roles

# The first to ask for the run that tests share waits for all of it.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.mark.parametrize("heads_only", [False, True])
def test_every_parameter_but_the_unused_ones_gets_a_gradient(tmp_path: Path, heads_only: bool) -> None:
    """Else DistributedDataParallel waits for ever."""
    artifact = publish(tmp_path / "tiny")
    Roles(list(range(len(Tokenizer.from_file(artifact / "tokenizer.json").vocabulary)))).save(artifact / "roles.json")
    module = load_module(artifact, max_tokens=dict.fromkeys(TASKS, 32), bf16=False)
    module.heads_only = heads_only
    with torch.no_grad():
        module.splade.decoder.bias.fill_(5.0)  # so that every word fires
    out = module(module.preprocess(list(SENTENCES), task="document"))
    (out["states"].sum() if heads_only else out["sentence_embedding"].square().sum()).backward()
    without = {name for name, parameter in module.named_parameters() if parameter.grad is None}
    unused = {id(parameter) for parameter in unused_parameters(module)}
    assert without == {name for name, parameter in module.named_parameters() if id(parameter) in unused}
    assert any("decoder.weight" in name for name in without) == heads_only


@pytest.mark.soak
def test_two_processes_give_the_losses_and_weights_of_one(prepared: Path, tmp_path: Path) -> None:
    recipe = recipe_with(
        tmp_path / "recipe.toml", ("steps = 20\n", "steps = 6\n"), ("save_steps = 10", "save_steps = 6")
    )
    alone, together = prepared, tmp_path / "together"
    train = ["-m", "training", "train", str(recipe), "--run", str(alone)]
    spread = [
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--standalone",
        "-m",
        "--",
        *["training", "run", str(recipe), "--run", str(together), "--store", str(together / "store")],
    ]
    for arguments in (train, spread):
        done = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
    version, *others = Store(str(together / "store")).versions()
    assert others == []
    assert done.stdout.count(version) == 1  # one of the two published
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
