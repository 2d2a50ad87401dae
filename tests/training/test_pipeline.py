"""The whole line once: train twenty steps on the sample, evaluate, publish, and serve what was published."""

import copy
import dataclasses
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import AutoModelForMaskedLM, AutoTokenizer, BertModel

from app.encoders.openvino_encoder import OpenVINOEncoder
from app.models.loaded import load_model
from sparse_encoder.artifact import Artifact, Description, write_artifact
from sparse_encoder.model import load_masked_lm
from sparse_encoder.modeling_lexical_bert import LexicalBertForMaskedLM
from sparse_encoder.packed import unpack
from sparse_encoder.store import Store, who
from tests.training.commands import RECIPE, ROOT, recipe_with, training
from tests.training.test_student import teacher as tiny_bert
from tests.training.ways import check_ways
from training import losses
from training.config import Config, ModelConfig, RunError, load_config
from training.data import load_training_data
from training.fit import Progress, SparseModel, Watch
from training.module import load_module
from training.pipeline import train
from training.run import Run
from training.stages.evaluate import TextEncoder, top_overlap
from training.stages.publish import Publication, previous_token_ids
from training.stages.teacher import teacher_stage
from training.stages.vocabulary import vocabulary_stage
from training.trained import trained_checkpoint
from training.validation import Validation
from training.vocabulary import Roles

# The first to ask for the run that tests share waits for all of it.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def test_training_lowers_the_loss_and_logs_its_parts(run: Path) -> None:
    log = [row for row in json.loads((run / "train" / "log.json").read_text()) if "loss" in row]
    assert len(log) == 20
    assert np.mean([row["loss"] for row in log[-6:]]) < np.mean([row["loss"] for row in log[:6]])
    assert {"contrastive", "lexical", "flops", "term synonym", "active_document"} <= set().union(*log)


def test_the_manifest_carries_the_measured_figures(run: Path, artifact: Artifact) -> None:
    measured = json.loads((run / "evaluation" / "report.json").read_text())
    assert artifact.manifest.evaluation == measured
    for row in measured["retrieval"].values():
        assert 0 <= row["inference_free"]["nDCG@10"] <= 1
        assert 0 < row["active_query_inference_free"] < row["active_query"]
    assert measured["retrieval"]["sample"]["queries"] == 6
    assert f"{measured['retrieval']['sample']['sparse']['nDCG@10']:.3f}" in (artifact.path / "README.md").read_text()
    assert (run / "evaluation" / "report.png").stat().st_size > 1000


def test_a_checkpoint_agrees_with_itself_as_the_reference(run: Path, artifact: Artifact) -> None:
    ours = TextEncoder.from_export(run, load_config(ROOT / RECIPE).publish)
    reference = TextEncoder.from_artifact(artifact.path)
    words = ours.top_words(["손해배상", "인공지능"], 20)
    assert [len(row) for row in words] == [20, 20]
    assert top_overlap(words, reference.top_words(["손해배상", "인공지능"], 20)) == 1.0


def test_any_software_gives_the_golden_vectors(artifact: Artifact) -> None:
    tokenizer = AutoTokenizer.from_pretrained(artifact.path, trust_remote_code=True)
    model = AutoModelForMaskedLM.from_pretrained(artifact.path, trust_remote_code=True).eval()
    for golden in list(artifact.golden())[:6]:
        inputs = tokenizer([golden.text], return_tensors="pt")
        with torch.no_grad():
            logits = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
        row = torch.log1p(torch.relu(logits.max(dim=1).values))[0]
        assert sorted(golden.ids) == row.nonzero()[:, 0].tolist()
        np.testing.assert_allclose(row[list(golden.ids)].numpy(), golden.weights, atol=1e-4)


def test_it_loads_in_every_way(artifact: Artifact) -> None:
    check_ways(artifact)


def test_what_must_not_be_emitted_is_closed_in_the_weights(run: Path, artifact: Artifact) -> None:
    never = Roles.load(run / "export" / "roles.json").never_emitted
    assert list(artifact.manifest.never_emitted_ids) == never
    head: Any = load_masked_lm(artifact.path).requires_grad_(False)
    assert float(head.decoder.weight[never].abs().max()) == 0
    assert float(head.decoder.bias[never].max()) == -1e4
    emitted = sorted(set(range(artifact.manifest.vocabulary_size)) - set(never))
    trained: Any = load_masked_lm(run / "train" / "final")
    torch.testing.assert_close(
        head.decoder.bias[emitted], trained.decoder.bias.detach()[emitted] + 0.25
    )  # the recipe's bias_shift


def test_the_head_learns_from_states_alone(run: Path) -> None:
    start, trained = (load_masked_lm(run / part) for part in ("start", "train/final"))
    for mlm, learned in ((start, False), (trained, True)):
        assert isinstance(mlm, LexicalBertForMaskedLM)
        assert bool(mlm.head.skip.weight.any()) is not learned
        assert torch.equal(mlm.head.dense.weight, cast(Any, start).head.dense.weight) is not learned


def test_the_service_accepts_the_packed_artifact(run: Path, artifact: Artifact, tmp_path: Path) -> None:
    unpacked = unpack(run / "packed", tmp_path / "unpacked")
    assert unpacked.manifest == artifact.manifest
    load_model(unpacked, lambda served: OpenVINOEncoder(served, "f32"))  # refuses what misses its golden vectors


@pytest.mark.parametrize("packed", [False, True])
def test_training_goes_on_from_what_was_published(run: Path, artifact: Artifact, tmp_path: Path, packed: bool) -> None:
    model = ModelConfig(start="checkpoint", checkpoint=str(run / "packed" if packed else artifact.path))
    config = load_config(ROOT / RECIPE).model_copy(update={"model": model})
    start = trained_checkpoint(Run(config, tmp_path))
    module = load_module(start, max_tokens={"query": 32, "document": 32}, bf16=False).eval()
    assert module.roles == Roles.load(run / "export" / "roles.json")
    before = next(golden for golden in artifact.golden() if golden.input_type == "document")
    features = module.preprocess([before.text], task="document")
    (vector,) = module(features)["sentence_embedding"].detach()
    assert module.roles.emitted[vector.nonzero()[:, 0]].tolist() == sorted(before.ids)
    assert float(vector.max()) == pytest.approx(max(before.weights), abs=1e-4)
    assert trained_checkpoint(Run(config, tmp_path)) == start


def test_training_does_not_go_on_from_nothing(tmp_path: Path) -> None:
    model = ModelConfig(start="checkpoint", checkpoint=str(tmp_path / "missing"))
    with pytest.raises(RunError, match="name the train/final of a run, or a published model"):
        trained_checkpoint(Run(load_config(ROOT / RECIPE).model_copy(update={"model": model}), tmp_path / "run"))


def test_training_goes_on_from_no_other_architecture(tiny_artifact: Path, tmp_path: Path) -> None:
    model = ModelConfig(start="checkpoint", checkpoint=str(tiny_artifact))
    with pytest.raises(RunError, match=r'go on from it with model\.start = "pretrained"'):
        trained_checkpoint(Run(load_config(ROOT / RECIPE).model_copy(update={"model": model}), tmp_path / "run"))


def test_finished_stages_are_not_run_again(run: Path) -> None:
    kept = [run / "vocabulary" / "tokenizer.json", run / "start" / "roles.json"]
    before = [path.stat().st_mtime_ns for path in kept]
    done = training("train", RECIPE, "--run", str(run))
    assert done.returncode == 0, done.stderr[-3000:]
    assert [path.stat().st_mtime_ns for path in kept] == before


def test_a_finished_training_takes_no_step_more(prepared: Path, tmp_path: Path) -> None:
    recipe = recipe_with(tmp_path / "recipe.toml", ("steps = 20\n", "steps = 3\n"))  # which is no whole epoch
    config = load_config(recipe, data_root=ROOT / "training" / "sample")
    weights = []
    for _ in range(2):
        final = train(config, prepared)
        weights.append((final / "model.safetensors").read_bytes())
        shutil.rmtree(final)  # as if it had been stopped just before
    assert weights[0] == weights[1]
    assert [path.name for path in (prepared / "train").glob("checkpoint-*")] == ["checkpoint-3"]


def going_on(run: Path, **model: Any) -> Config:
    """The sample recipe, from what ``run`` trained."""
    section = ModelConfig(start="checkpoint", checkpoint=str(run / "train" / "final"), **model)
    return load_config(ROOT / RECIPE, data_root=ROOT / "training" / "sample").model_copy(update={"model": section})


@pytest.fixture
def tiny_teacher(monkeypatch: pytest.MonkeyPatch) -> tuple[BertModel, Tokenizer]:
    """Stands in for e5-small, whose file is not the project's to ship: any BertModel with a tokenizer is a teacher."""
    teacher, tokenizer = tiny_bert()
    monkeypatch.setattr("training.stages.teacher.load_e5", lambda path: (teacher, tokenizer))
    return teacher, tokenizer


def test_a_teacher_with_larger_vectors_is_refused(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = SimpleNamespace(config=SimpleNamespace(hidden_size=65))
    monkeypatch.setattr("training.stages.teacher.load_e5", lambda path: (teacher, None))
    with pytest.raises(RunError, match=r"states have 64 dimensions, the teacher's vectors 65: go on without a teacher"):
        train(going_on(run), tmp_path / "run")
    without = Run(going_on(run, e5_path=""), tmp_path)
    assert teacher_stage(without, vocabulary_stage(without)) is None


def test_what_was_wrong_can_be_put_right_in_the_same_run(run: Path, tmp_path: Path) -> None:
    wrong = ModelConfig(start="checkpoint", checkpoint=str(tmp_path / "missing"))
    with pytest.raises(RunError, match="no trained checkpoint there"):
        train(going_on(run).model_copy(update={"model": wrong}), tmp_path / "run")
    right = going_on(run, e5_path="")
    train(right.model_copy(update={"train": right.train.model_copy(update={"steps": 1})}), tmp_path / "run")


def test_no_training_starts_that_could_not_be_published(run: Path, tmp_path: Path) -> None:
    command = ("run", RECIPE, "--run", str(tmp_path / "run"), "--store", str(tmp_path / "store"))
    done = training(*command, "--pack", str(run / "packed"))
    assert done.returncode == 1
    assert "packed: exists already; remove it or name another directory for --pack" in done.stderr
    done = training(*command, "--reference", str(tmp_path / "nothing"))
    assert done.returncode == 1
    assert "error: " in done.stderr
    assert not (tmp_path / "run").exists()


def strict(recipe: Path) -> Path:
    """A recipe with a gate that the sample cannot pass."""
    return recipe_with(recipe, ("active_query = [1, 500]", "active_query = [1, 2]"))


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_gate_refuses_and_force_says_who_and_why(run: Path, artifact: Artifact, tmp_path: Path) -> None:
    recipe, store = strict(tmp_path / "recipe.toml"), tmp_path / "store"
    shutil.copytree(run / "store", store)
    before, left = files(store), sorted(run.iterdir())
    command = (
        "publish",
        str(recipe),
        "--run",
        str(run),
        "--store",
        str(store),
        "--alias",
        "canary",
        "--alias",
        "stable",
    )
    done = training(*command)
    active = artifact.manifest.evaluation["retrieval"]["sample"]["active_query"]
    gate = f"sample: {active:.1f} active words a query, must be 1 to 2"
    assert done.returncode == 1
    assert f"error: not published, gates failed:\n  {gate}\n" in done.stderr
    assert "Traceback" not in done.stderr
    assert (files(store), sorted(run.iterdir())) == (before, left)

    done = training(*command, "--force", "--reason", "to look at it")
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip() == artifact.manifest.version
    shown = subprocess.run(
        [sys.executable, "-m", "sparse_encoder", "store", str(store), "show", "canary"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    note = shown.split("\n", 1)[0]
    assert note.startswith("canary: stands for it; set ")
    assert f"forced by {who()} at 20" in note
    assert note.endswith(f"to look at it; failed gates: {gate}")
    assert sorted(run.iterdir()) == left


def test_a_worse_model_does_not_replace_the_incumbent(run: Path, artifact: Artifact, tmp_path: Path) -> None:
    better = copy.deepcopy(dict(artifact.manifest.evaluation))
    better["retrieval"]["sample"]["sparse"]["nDCG@10"] += 0.1
    description = {field.name: getattr(artifact.manifest, field.name) for field in dataclasses.fields(Description)}
    shutil.copytree(artifact.path, tmp_path / "files", ignore=shutil.ignore_patterns("manifest.json"))

    def fill(folder: Path) -> None:
        shutil.copytree(tmp_path / "files", folder, dirs_exist_ok=True)

    incumbent = write_artifact(
        tmp_path / "incumbent",
        fill,
        lambda _: Description(**{**description, "version": "incumbent", "evaluation": better}),
    )
    store = Store(str(tmp_path / "store"))
    store.publish(incumbent, aliases=["stable"], by="test")
    command = ("publish", RECIPE, "--run", str(run), "--store", store.url)
    done = training(*command, "--alias", "stable")
    assert done.returncode == 1
    assert "(incumbent less 0.05)" in done.stderr
    assert store.versions() == ["incumbent"]
    done = training(*command, "--alias", "canary")  # which stands for nothing yet
    assert done.returncode == 0, done.stderr[-3000:]
    assert (store.resolve("stable"), store.resolve("canary")) == ("incumbent", artifact.manifest.version)


def test_a_vocabulary_that_outgrows_plain_ids_keeps_those_of_its_tokens(
    run: Path, artifact: Artifact, tmp_path: Path
) -> None:
    publication = Publication(Store(str(run / "store")), ("stable",))
    assert previous_token_ids(publication, tmp_path, 32_768) == {}
    before = previous_token_ids(publication, tmp_path, 32_769)
    never = set(artifact.manifest.never_emitted_ids)
    vocabulary = AutoTokenizer.from_pretrained(artifact.path).get_vocab()
    assert before == {token: i for token, i in vocabulary.items() if i not in never}
    anew = dataclasses.replace(publication, new_token_ids=True)
    assert previous_token_ids(anew, tmp_path, 32_769) == {}


def test_force_needs_a_reason(tmp_path: Path) -> None:
    done = training("publish", RECIPE, "--run", str(tmp_path), "--store", str(tmp_path / "store"), "--force")
    assert done.returncode == 2
    assert "--force and --reason TEXT go together" in done.stderr


def test_publishing_without_figures_is_refused(tmp_path: Path) -> None:
    done = training("publish", RECIPE, "--run", str(tmp_path), "--store", str(tmp_path / "store"))
    assert done.returncode == 1
    assert "run `python -m training evaluate` first" in done.stderr
    assert not (tmp_path / "store").exists()


def test_a_killed_training_ends_with_the_weights_of_an_undisturbed_one(prepared: Path, tmp_path: Path) -> None:
    recipe = recipe_with(
        tmp_path / "recipe.toml",
        ("steps = 20\n", "steps = 60\n"),
        ("[data]\n", "[data]\nvalidation_pairs = 8\n"),
        ("[train]\n", "[train]\nhard_negatives = true\n"),
    )
    resumed, undisturbed = tmp_path / "run", tmp_path / "undisturbed"
    for folder in (resumed, undisturbed):
        shutil.copytree(prepared, folder)
    done = training("train", str(recipe), "--run", str(undisturbed))
    assert done.returncode == 0, done.stderr[-3000:]
    command = [sys.executable, "-m", "training", "train", str(recipe), "--run", str(resumed)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while not (resumed / "train" / "checkpoint-20").is_dir():  # checkpoint-10 is then complete
            assert process.poll() is None, "the training ended before it was killed"
            time.sleep(0.02)
        process.kill()
    assert not (resumed / "train" / "final").exists()
    done = training("train", str(recipe), "--run", str(resumed))
    assert done.returncode == 0, done.stderr[-3000:]
    log = json.loads((resumed / "train" / "log.json").read_text())
    assert [row["step"] for row in log if "loss" in row] == list(range(1, 61))
    for name in ("checkpoint-60/model.safetensors", "final/model.safetensors", "validation.json"):
        assert (resumed / "train" / name).read_bytes() == (undisturbed / "train" / name).read_bytes(), name


def test_the_best_checkpoint_by_retrieval_is_the_one_that_is_kept(run: Path, tmp_path: Path) -> None:
    config = load_config(ROOT / RECIPE, data_root=ROOT / "training" / "sample")
    pairs = load_training_data(config).pairs[:8]
    module = load_module(run / "train" / "final", max_tokens=dict.fromkeys(("query", "document"), 32), bf16=False)
    validation = Validation(config, module, pairs, tmp_path)
    good = validation.measure()
    state = SimpleNamespace(is_world_process_zero=True, global_step=10)
    validation.on_save(None, state, None)
    kept = (tmp_path / "best" / "model.safetensors").read_bytes()
    with torch.no_grad():
        module.splade.decoder.bias.fill_(-1e4)  # no word is added any more
        module.splade.mlm.own_weight.zero_()  # and none of the text's own is left
    state.global_step = 20
    validation.on_save(None, state, None)
    assert json.loads((tmp_path / "validation.json").read_text()) == {"10": good, "20": 0.0}
    assert good > 0
    assert (tmp_path / "best" / "model.safetensors").read_bytes() == kept


def test_a_run_writes_a_log_with_the_time_left_and_curves(run: Path) -> None:
    lines = (run / "train" / "log.txt").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 20
    assert re.search(r" step 20/20 .*loss .*active_document .*contrastive .*time left 0:00:00$", lines[-1])
    assert (run / "train" / "curves.png").stat().st_size > 1000


def test_other_settings_in_the_same_run_are_refused(run: Path, tmp_path: Path) -> None:
    recipe = recipe_with(tmp_path / "recipe.toml", ("size = 1500", "size = 1600"))
    done = training("train", str(recipe), "--run", str(run))
    assert done.returncode == 1
    assert "the recipe's 'vocabulary' differs" in done.stderr


def test_figures_of_other_weights_are_not_published(run: Path, tmp_path: Path) -> None:
    other = tmp_path / "run"
    shutil.copytree(run / "export", other / "export")
    shutil.copy(run / "origin.json", other)
    report = json.loads((run / "evaluation" / "report.json").read_text())
    (other / "evaluation").mkdir()
    (other / "evaluation" / "report.json").write_text(json.dumps({**report, "weights_sha256": "0" * 64}))
    done = training("publish", RECIPE, "--run", str(other), "--store", str(tmp_path / "store"))
    assert done.returncode == 1
    assert "measured other weights" in done.stderr


def test_an_export_that_is_missing_is_said(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run / "evaluation", tmp_path / "run" / "evaluation")
    done = training("publish", RECIPE, "--run", str(tmp_path / "run"), "--store", str(tmp_path / "store"))
    assert done.returncode == 1
    assert "export: missing; run `python -m training evaluate` again" in done.stderr
    assert "Traceback" not in done.stderr


class _NoGradient(torch.autograd.Function):
    """Gives its input, and NaN for a gradient."""

    @staticmethod
    def forward(ctx: Any, value: torch.Tensor) -> torch.Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        return gradients[0] * torch.nan


@pytest.mark.parametrize(
    ("poison", "message"),
    [(lambda loss: loss * torch.nan, "the loss is nan"), (_NoGradient.apply, "a gradient is no number")],
    ids=["loss", "gradient"],
)
def test_a_training_that_diverges_keeps_its_last_good_checkpoint(
    prepared: Path, monkeypatch: pytest.MonkeyPatch, poison: Callable[[torch.Tensor], torch.Tensor], message: str
) -> None:
    config = load_config(ROOT / RECIPE, data_root=ROOT / "training" / "sample")
    settings = config.train.model_copy(update={"steps": 5, "save_steps": 1, "log_steps": 10})
    lexical, calls = losses.lexical, 0

    def poisoned(*arguments: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return poison(lexical(*arguments)) if calls > 4 else lexical(*arguments)  # of both sides of two batches

    monkeypatch.setattr(losses, "lexical", poisoned)
    with pytest.raises(RunError, match=message):
        train(config.model_copy(update={"train": settings}), prepared)
    (checkpoint,) = (prepared / "train").glob("checkpoint-*")
    assert checkpoint.name == "checkpoint-2"
    for name, tensor in load_file(checkpoint / "model.safetensors").items():
        assert torch.isfinite(tensor).all(), name


def watch(model: SimpleNamespace) -> Watch:
    return Watch(Progress(), cast(SparseModel, model), (3.0, 100.0))


@pytest.mark.parametrize(
    ("active", "message"),
    [((10.0, 900.0), "documents activate 900 words"), ((0.0, 0.0), "queries activate 0 words")],
)
def test_a_run_whose_words_leave_their_band_stops_itself(active: tuple[float, float], message: str) -> None:
    with pytest.raises(RunError, match=message):
        watch(SimpleNamespace(active=active)).on_log(None, SimpleNamespace(global_step=7), None, {"loss": 1.0})


def test_a_run_that_goes_well_goes_on() -> None:
    for active in ((10.0, 20.0), None):
        watch(SimpleNamespace(active=active)).on_log(None, SimpleNamespace(global_step=7), None, {"loss": 1.0})


def test_from_the_teachers_layers_through_alignment_and_negatives_to_a_trained_checkpoint(
    tmp_path: Path, tiny_teacher: tuple[BertModel, Tokenizer]
) -> None:
    config = load_config(ROOT / RECIPE, data_root=ROOT / "training" / "sample")
    config = config.model_copy(
        update={
            "model": ModelConfig(start="e5", e5_path="stands-in", start_active=20),
            "align": config.align.model_copy(update={"steps": 3, "batch": 8}),
            "train": config.train.model_copy(update={"steps": 2, "hard_negatives": True}),
        }
    )
    final = train(config, tmp_path)
    for result in ("vocabulary", "teacher", "lexical", "start", "align/final", "aligned", "negatives", "train/final"):
        assert (tmp_path / result).is_dir(), result
    assert not list(tmp_path.glob("*.partial"))
    started, aligned, trained = (
        load_file(path / "model.safetensors") for path in (tmp_path / "start", tmp_path / "align" / "final", final)
    )
    layer = "bert.encoder.layer.0.output.dense.weight"
    assert torch.equal(started[layer], tiny_teacher[0].state_dict()[layer.removeprefix("bert.")])
    assert not torch.equal(started[layer], aligned[layer])
    assert not torch.equal(aligned[layer], trained[layer])
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/*.safetensors")}
    train(config, tmp_path)
    assert {path: path.stat().st_mtime_ns for path in before} == before
