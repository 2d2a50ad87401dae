"""A run: a recipe, and the directory in which each stage leaves its result, whole or not at all."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from sparse_encoder.disk import fsync
from training.config import Config, RunError
from training.data import TrainingData, load_training_data
from training.distributed import processes

_SETTINGS = "config.json"
_ORIGIN = "origin.json"
_INPUTS = "inputs.txt"
_FIXED_SECTIONS = ("seed", "data", "vocabulary", "related", "model", "align")


@dataclass(frozen=True)
class Run:
    config: Config
    path: Path

    @cached_property
    def data(self) -> TrainingData:
        """Read once, when it is first asked for."""
        return load_training_data(self.config)

    def result(self, name: str, make: Callable[[Path], object], *, inputs: str = "") -> Path:
        """The directory ``name`` of this run, which ``make`` fills unless it is there, made of the same ``inputs``.

        Of several processes the first makes it and the others wait; so ``make`` asks for no other result.
        """
        out = self.path / name
        with processes(self.config.train).main_process_first():
            if not _made_of(out, inputs):
                with whole_directory(out) as folder:
                    make(folder)
                    (folder / _INPUTS).write_text(inputs, encoding="utf-8")
        return out


def _made_of(out: Path, inputs: str) -> bool:
    path = out / _INPUTS
    return path.is_file() and path.read_text(encoding="utf-8") == inputs


@contextmanager
def whole_directory(target: Path) -> Iterator[Path]:
    """A directory to fill, which takes the place of ``target`` when the block ends without an error: a process that is
    killed meanwhile leaves what was there before. For one writer."""
    partial = target.with_name(f"{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    yield partial
    for path in (*partial.rglob("*"), partial):
        fsync(path)
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)
    fsync(target.parent)


def write_json(path: Path, content: Any) -> None:
    """Writes the file whole or not at all."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")
    partial.replace(path)


def check_settings(run: Run) -> None:
    """Raises ``RunError`` if stages of the run that are done were made with other settings."""
    path = run.path / _SETTINGS
    if path.is_file():
        try:
            before, now = Config.model_validate_json(path.read_text(encoding="utf-8")), run.config
        except ValidationError as error:
            raise RunError(f"{path}: not the settings of a run of this version: use another --run directory") from error
        for section in _FIXED_SECTIONS:
            old, new = getattr(before, section), getattr(now, section)
            if section == "data":
                old, new = old.model_copy(update={"root": new.root}), new
            if old != new:
                raise RunError(
                    f"{run.path}: the recipe's {section!r} differs from what this run was started with; finished "
                    "stages would not match it: use another --run directory"
                )


def fix_settings(run: Run) -> None:
    """From here on stages leave results; what was wrong before can be put right in the same run."""
    write_json(run.path / _SETTINGS, run.config.model_dump(mode="json"))
    write_json(run.path / "data.json", run.data.counts)


def record_origin(run: Path, recipe: Path) -> None:
    """Keep which code and recipe a run was started with; the artifact names them."""
    path = run / _ORIGIN
    if path.is_file():
        return
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            capture_output=True,
            text=True,
            cwd=Path(__file__).parent,
            check=False,
        )
        commit = done.stdout.strip() or "unknown"
    except FileNotFoundError:  # no git here
        commit = "unknown"
    run.mkdir(parents=True, exist_ok=True)
    write_json(path, {"commit": commit, "command": f"python -m training train {recipe.name}"})


def read_origin(run: Path) -> dict[str, str]:
    """Raises ``RunError`` if the run was never started."""
    path = run / _ORIGIN
    if not path.is_file():
        raise RunError(f"{path}: missing; run `python -m training train` first")
    origin: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))
    return origin
