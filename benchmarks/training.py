"""`python -m benchmarks.training`: tokens a second of training, our module beside that of sentence-transformers.

    python -m benchmarks.training [--steps 3] [--rounds 2] [--pairs 16] [--tokens 32 128]

Both are trained by `SparseEncoderTrainer` with its `SpladeLoss` on the same pairs (query and passage), AdamW, in f32
and in bf16, each in a process of its own, in turn. A BERT of 152 M, random. A step's time is the mean after the first,
which allocates; memory is the most of the process beyond weights, gradients and AdamW's two moments.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from benchmarks import models
from benchmarks.noise import Turns

SIDES = ("ours", "sentence-transformers")
ROOT = Path(__file__).parent.parent
#: Loaded weights, their gradients and AdamW's two moments, in f32.
STATES = 4


class Cost(NamedTuple):
    """Of a step."""

    seconds: float
    beyond: float  #: MB


def model_of(side: str, bf16: bool, most: int) -> Any:
    """Trained by the same loss: both give the vectors as `sentence_embedding`."""
    from sentence_transformers import SparseEncoder
    from sentence_transformers.sparse_encoder.modules import MLMTransformer, SpladePooling

    directory = str(models.bert())
    if side == "sentence-transformers":
        return SparseEncoder(modules=[MLMTransformer(directory, max_seq_length=most), SpladePooling()], device="cpu")
    from tokenizers import Tokenizer

    from sparse_encoder.model import SpladeModel
    from training.module import TASKS, TiledSplade
    from training.vocabulary import Roles

    splade = SpladeModel.from_pretrained(directory)
    tokenizer = Tokenizer.from_file(f"{directory}/tokenizer.json")
    roles = Roles(list(range(tokenizer.get_vocab_size())))
    return SparseEncoder(
        modules=[TiledSplade(splade, tokenizer, roles, dict.fromkeys(TASKS, most), bf16)], device="cpu"
    )


def train(side: str, bf16: bool, steps: int, pairs: int, tokens: Sequence[int]) -> Cost:
    from datasets import Dataset
    from sentence_transformers import SparseEncoderTrainer, SparseEncoderTrainingArguments
    from sentence_transformers.sparse_encoder.losses import SparseMultipleNegativesRankingLoss, SpladeLoss
    from transformers import TrainerCallback

    from benchmarks.encode import texts_of

    ends: list[float] = []

    class Watch(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            ends.append(time.perf_counter())

    model = model_of(side, bf16, max(tokens))
    count = (steps + 1) * pairs
    columns = {name: texts_of(most, count) for name, most in zip(("query", "passage"), tokens, strict=True)}
    loss = SpladeLoss(
        model,
        SparseMultipleNegativesRankingLoss(model),
        document_regularizer_weight=3e-5,
        query_regularizer_weight=5e-5,
    )
    with tempfile.TemporaryDirectory() as out:
        arguments = SparseEncoderTrainingArguments(
            output_dir=out,
            max_steps=steps + 1,
            per_device_train_batch_size=pairs,
            bf16=bf16 and side != "ours",  # ours does so itself
            use_cpu=True,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            dataloader_pin_memory=False,
        )
        SparseEncoderTrainer(
            model=model, args=arguments, train_dataset=Dataset.from_dict(columns), loss=loss, callbacks=[Watch()]
        ).train()
    weights = sum(parameter.numel() for parameter in model.parameters()) * 4 / 1e6
    most_memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    return Cost((ends[-1] - ends[0]) / steps, most_memory - STATES * weights)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training", description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=16, help="a step")
    parser.add_argument("--tokens", type=int, nargs=2, default=[32, 128], help="of a query, and of a passage")
    parser.add_argument("--precisions", nargs="+", choices=["f32", "bf16"], default=["f32", "bf16"])
    parser.add_argument("--side", choices=SIDES, help="only this one, here, and its figures as JSON")
    options = parser.parse_args(arguments)
    if options.side:
        (precision,) = options.precisions
        found = train(options.side, precision == "bf16", options.steps, options.pairs, options.tokens)
        print(json.dumps(found._asdict()))
        return
    models.bert()
    turns = Turns()
    print("| precision | | tokens/s | x | MB beyond |\n|---|---|---|---|---|", flush=True)
    for precision in options.precisions:
        rounds = [[turns_of(turns, side, precision, options) for side in SIDES] for _ in range(options.rounds)]
        ours, theirs = (min(one[side].seconds for one in rounds) for side in range(2))
        for side, seconds in zip(SIDES, (ours, theirs), strict=True):
            beyond = median(one[SIDES.index(side)].beyond for one in rounds)
            speed = options.pairs * sum(options.tokens) / seconds
            print(f"| {precision} | {side} | {speed:.0f} | {theirs / seconds:.2f} | {beyond:.0f} |", flush=True)
    print(turns)


def turns_of(turns: Turns, side: str, precision: str, options: argparse.Namespace) -> Cost:
    """Of a process of its own."""
    line = [sys.executable, "-m", "benchmarks.training", "--side", side, "--precisions", precision]
    line += ["--steps", str(options.steps), "--pairs", str(options.pairs), "--tokens", *map(str, options.tokens)]
    taken: list[Cost] = []

    def measure() -> float:
        said = subprocess.run(line, check=True, cwd=ROOT, stdout=subprocess.PIPE, text=True).stdout
        taken.append(Cost(**json.loads(said.splitlines()[-1])))
        return taken[-1].seconds

    turns.take(measure)
    return min(taken)


if __name__ == "__main__":
    main()
