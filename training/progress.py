"""What a run leaves for a human to read while it goes on: a plain-text log with the time left, and curves."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from transformers import TrainerCallback

_NOT_PARTS = frozenset({"step", "epoch", "grad_norm", "learning_rate", "loss", "active_query", "active_document"})


class Diary(TrainerCallback):
    """Appends each logged step to ``log.txt`` and draws ``curves.png`` whenever a checkpoint is saved."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.started: tuple[float, int] | None = None  #: clock and step at which this process began

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.started is None:
            self.started = (time.monotonic(), state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        if not state.is_world_process_zero or logs is None or "loss" not in logs or self.started is None:
            return
        seconds, since = time.monotonic() - self.started[0], state.global_step - self.started[1]
        left = seconds / max(1, since) * (state.max_steps - state.global_step)
        figures = " ".join(f"{name.replace(' ', '-')} {value:.4g}" for name, value in logs.items() if name != "epoch")
        line = f"{time.strftime('%Y-%m-%dT%H:%M:%S')} step {state.global_step}/{state.max_steps} {figures}"
        with (self.out / "log.txt").open("a", encoding="utf-8") as file:
            file.write(f"{line} time left {duration(left)}\n")

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.is_world_process_zero:
            draw_curves(state.log_history, self.out / "curves.png")


def duration(seconds: float) -> str:
    """``h:mm:ss``."""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"


def draw_curves(history: list[dict[str, float]], path: Path) -> None:
    """The loss with its parts, and the active words, by step; ``history`` is what the trainer logged. Nothing is drawn
    before there is any."""
    rows = [row for row in history if "loss" in row]
    if not rows:
        return
    figure = Figure(figsize=(8, 6), layout="constrained")
    losses, words = figure.subplots(2, 1, sharex=True)
    parts = sorted(set().union(*(row.keys() for row in rows)) - _NOT_PARTS)
    for name in ["loss", *parts]:
        known = [(row["step"], row[name]) for row in rows if name in row]
        losses.plot(*zip(*known, strict=True), label=name, linewidth=2 if name == "loss" else 1)
    for name in ("active_query", "active_document"):
        if known := [(row["step"], row[name]) for row in rows if name in row]:
            words.plot(*zip(*known, strict=True), label=name.replace("_", " "))
            words.legend(fontsize=7)
    losses.legend(fontsize=7, ncols=2)
    losses.set_ylabel("weighted loss")
    words.set_ylabel("active words")
    words.set_xlabel("step")
    figure.savefig(path, dpi=120)
