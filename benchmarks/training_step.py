"""`python -m benchmarks.training_step`: seconds of a training step with and without `training.allocator`.

The embedded model learns from batches of random pieces, of lengths as they come in training; each way in processes of
its own, in turn. Prints the medians and the most memory that each took.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer

from app.checkpoints import EMBEDDED
from sparse_encoder.model import SpladeModel
from sparse_encoder.packed import unpack
from training.allocator import keep_freed_memory
from training.losses import contrastive, flops
from training.module import TASKS, TiledSplade
from training.vocabulary import Roles

_BATCH = 64


def worker(path: str, steps: int, keep: bool) -> dict[str, float]:
    if keep:
        keep_freed_memory()
    torch.set_num_threads(2)
    splade = SpladeModel.from_pretrained(path)
    roles = Roles([int(token) for token in splade.mlm.own_token])
    splade = SpladeModel(splade.mlm, roles.emitted)
    tokenizer = Tokenizer.from_file(f"{path}/tokenizer.json")
    model = TiledSplade(splade, tokenizer, roles, dict.fromkeys(TASKS, 192), bf16=True).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    random = np.random.default_rng(0)
    size = tokenizer.get_vocab_size()
    seconds = []
    for step in range(steps + 5):
        started = time.perf_counter()
        sides = []
        for longest in (12, int(random.choice([48, 112, 192]))):
            ids = torch.from_numpy(random.integers(5, size, (_BATCH, longest)))
            mask = torch.arange(longest) < torch.from_numpy(random.integers(longest // 2, longest + 1, (_BATCH, 1)))
            sides.append(model({"input_ids": ids, "attention_mask": mask.long()})["sentence_embedding"])
        query, document = sides
        (contrastive(query @ document.T / 20) + 0.02 * flops(document, document.detach().mean(0))).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 2.0)
        optimizer.step()
        optimizer.zero_grad()
        if step >= 5:
            seconds.append(time.perf_counter() - started)
    return {
        "seconds": float(np.mean(seconds)),
        "gigabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training_step", description=__doc__)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        path, way = options.worker
        print(json.dumps(worker(path, options.steps, way == "kept")))
        return 0
    measured: dict[str, list[dict[str, float]]] = {"as the system does": [], "kept": []}
    with tempfile.TemporaryDirectory() as directory:
        unpack(EMBEDDED, Path(directory) / "model")
        for _ in range(options.rounds):
            for way, rows in measured.items():
                command = [sys.executable, "-m", "benchmarks.training_step", "--steps", str(options.steps)]
                command += ["--worker", f"{directory}/model", way]
                rows.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    for way, rows in measured.items():
        seconds, gigabytes = (np.median([row[key] for row in rows]) for key in ("seconds", "gigabytes"))
        print(f"freed memory {way}: {seconds:.2f} s a step, {gigabytes:.1f} GB at most")
    return 0


if __name__ == "__main__":
    sys.exit(main())
