"""What a stage leaves in a run: whole or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from transformers import AlbertConfig, AlbertForMaskedLM

from tests.training.test_student import teacher as tiny_teacher
from training.config import ModelConfig, RunError, load_config
from training.e5 import DenseTeacher
from training.run import Run, whole_directory
from training.stages import teacher
from training.stages.lexical import lexical_stage
from training.stages.start import STARTS, pretrained_model
from training.stages.teacher import teacher_stage
from training.stages.vocabulary import vocabulary_stage

RECIPE = Path(__file__).parents[2] / "training" / "sample" / "recipe.toml"


class Killed(BaseException):
    """As a signal would end the process."""


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(load_config(RECIPE, data_root=RECIPE.parent), tmp_path / "run")


def half(folder: Path) -> None:
    (folder / "half").write_text("a")
    raise Killed


def whole(folder: Path) -> None:
    (folder / "whole").write_text("b")


def test_a_stage_that_is_cut_off_leaves_no_result_and_is_made_anew(run: Run) -> None:
    with pytest.raises(Killed):
        run.result("part", half)
    assert not (run.path / "part").exists()
    out = run.result("part", whole)
    assert (out / "whole").read_text() == "b"
    assert not (out / "half").exists()
    assert run.result("part", half) == out  # it is there, so nothing is made


def test_a_result_of_other_inputs_is_made_anew(run: Run) -> None:
    run.result("part", lambda folder: (folder / "first").touch(), inputs="a")
    with pytest.raises(Killed):
        run.result("part", half, inputs="b")
    assert (run.path / "part" / "first").is_file()  # what was there stays until there is another
    out = run.result("part", whole, inputs="b")
    assert not (out / "first").exists()


def test_a_directory_is_replaced_as_a_whole(tmp_path: Path) -> None:
    target = tmp_path / "best"
    for name in ("one", "two"):
        with whole_directory(target) as folder:
            (folder / "sub").mkdir()
            (folder / "sub" / name).touch()
    assert [path.name for path in (target / "sub").iterdir()] == ["two"]
    assert [path.name for path in tmp_path.iterdir()] == ["best"]


@pytest.mark.slow
def test_a_run_goes_on_after_a_kill_in_the_middle_of_writing_lexical_weights(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    vocabulary = vocabulary_stage(run)

    def cut_off(file: Path, array: np.ndarray, **_: object) -> None:
        Path(file).write_bytes(b"\x93NUMPY")
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(np, "save", cut_off)
        patched.setattr(np, "savez", cut_off)
        with pytest.raises(Killed):
            lexical_stage(run, vocabulary)
    weights = lexical_stage(run, vocabulary)
    assert len(weights.own) == len(vocabulary.pieces)
    assert weights.passage_length > 0


def test_every_start_that_a_recipe_may_name_is_in_the_table() -> None:
    assert set(STARTS) == set(get_args(ModelConfig.model_fields["start"].annotation))


def test_a_teacher_that_is_stopped_goes_on_where_it_was(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(run.config.model_copy(update={"model": ModelConfig(start="e5", e5_path="stands-in")}), tmp_path)
    vocabulary = vocabulary_stage(run)
    monkeypatch.setattr(teacher, "load_e5", lambda path: tiny_teacher())
    monkeypatch.setattr(teacher, "_CHUNK", 8)
    encode, parts, stop_at = DenseTeacher.encode, 0, 3

    def counted(self: DenseTeacher, texts: list[str], **settings: Any) -> Any:
        nonlocal parts
        if parts == stop_at:
            raise Killed
        parts += 1
        return encode(self, texts, **settings)

    monkeypatch.setattr(DenseTeacher, "encode", counted)
    with pytest.raises(Killed):
        teacher_stage(run, vocabulary)
    assert not (run.path / "teacher").exists()
    stop_at = -1
    vectors = teacher_stage(run, vocabulary)
    assert vectors
    rows = [len(vectors.queries), len(vectors.passages), len(vectors.words)]
    assert rows == [len(run.data.pairs), len(run.data.pairs), len(vocabulary.pieces)]
    assert parts == sum(-(-count // 8) for count in rows)  # none of them twice
    assert not list(run.path.glob("teacher.*"))


def test_a_pretrained_model_of_an_architecture_that_is_not_known_is_refused(run: Run, tmp_path: Path) -> None:
    sizes: dict[str, Any] = {"vocab_size": 90, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16}
    AlbertForMaskedLM(AlbertConfig(embedding_size=8, num_hidden_layers=1, **sizes)).save_pretrained(tmp_path / "albert")
    model = ModelConfig(start="pretrained", checkpoint=str(tmp_path / "albert"))
    with pytest.raises(RunError, match="AlbertForMaskedLM is not known; known are BertForMaskedLM"):
        pretrained_model(run.config.model_copy(update={"model": model}))
