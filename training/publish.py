"""From a trained run to a published artifact: close what must not be emitted, round, measure, describe, write."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

import torch
from tokenizers import Tokenizer as BackendTokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from sparse_encoder.artifact import (
    CLOSED_BIAS,
    TOKEN_IDS,
    Architecture,
    Description,
    GoldenVector,
    InputType,
    TrainingOrigin,
    file_record,
    write_artifact,
    write_golden,
)
from sparse_encoder.checkpoint.golden import GOLDEN_TEXTS, GOLDEN_TOLERANCE
from sparse_encoder.model import SpladeModel, load_masked_lm
from sparse_encoder.packed import dequantise, pack, quantise
from sparse_encoder.store import Store, who
from sparse_encoder.token_ids import MAX_TOKEN_IDS, read_token_ids, write_token_ids
from sparse_encoder.tokenizer import Tokenizer
from training.calibrate import excess_bias
from training.card import model_card
from training.config import Config, RunError
from training.data import TrainingData
from training.encode import encode
from training.gate import failed_gates
from training.loaders import add_loaders
from training.query_side import query_tokens
from training.vocabulary import SPECIAL_TOKENS, Roles

_CALIBRATION_PAIRS = 1000
_CALIBRATION_TOKENS = 256


@torch.no_grad()
def export(trained: Path, out: Path, config: Config, data: TrainingData) -> Path:
    """Write ``trained`` as a plain transformers checkpoint, rounded, with never-emitted ids closed; returns ``out``.

    The decoder bias is shifted and calibrated as ``config.publish`` says, on a sample of the training texts.
    Every matrix is rounded to what int8 blocks with a float scale can hold, so the figures measured afterwards are
    those of the weights that ship, in whichever form they are stored.
    """
    if not (trained / "roles.json").is_file():
        raise RunError(f"{trained}: no trained checkpoint there; run `python -m training train` to its end first")
    roles = Roles.load(trained / "roles.json")
    mlm: Any = load_masked_lm(trained)
    decoder = mlm.get_output_embeddings()
    decoder.weight[roles.never_emitted] = 0.0
    settings = config.publish
    if settings.max_expansion_rate:
        model = SpladeModel(mlm, roles.emitted)
        tokenizer = Tokenizer.from_file(trained / "tokenizer.json")
        sample = data.pairs[-_CALIBRATION_PAIRS:]
        excess = [
            excess_bias(model, tokenizer, roles, texts, settings.max_expansion_rate, settings.bias_shift, length)
            for texts, length in (
                ([pair.query for pair in sample], settings.max_length_query),
                ([pair.passage for pair in sample], _CALIBRATION_TOKENS),
            )
        ]
        decoder.bias[model.emitted] -= torch.maximum(*excess)
    decoder.bias += settings.bias_shift
    decoder.bias[roles.never_emitted] = CLOSED_BIAS
    if hasattr(mlm, "cls"):
        mlm.cls.predictions.bias.copy_(decoder.bias)  # newer transformers keep it twice; other software reads either
    for parameter in mlm.parameters():
        if not torch.isfinite(parameter).all():
            raise RunError(f"{trained}: its weights hold NaN or infinity: the run diverged")
        if parameter.dim() == 2:
            parameter.copy_(torch.from_numpy(dequantise(*quantise(parameter.numpy()))))
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    mlm.save_pretrained(str(out))
    if config.model.start == "pretrained":
        own = AutoTokenizer.from_pretrained(config.model.checkpoint)
        own.model_max_length = settings.max_length_document
        own.save_pretrained(str(out))
    else:
        names = dict(zip(("pad", "unk", "cls", "sep", "mask"), SPECIAL_TOKENS, strict=True))
        PreTrainedTokenizerFast(
            tokenizer_object=BackendTokenizer.from_file(str(trained / "tokenizer.json")),
            model_max_length=settings.max_length_document,
            **{f"{name}_token": token for name, token in names.items()},
        ).save_pretrained(str(out))
    roles.save(out / "roles.json")
    return out


def record_origin(run: Path, recipe: Path) -> None:
    """Keep which code and recipe a run was started with; the artifact names them."""
    path = run / "origin.json"
    if path.is_file():
        return
    here = Path(__file__).parent
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            capture_output=True,
            text=True,
            cwd=here,
            check=False,
        )
        commit = done.stdout.strip() or "unknown"
    except FileNotFoundError:  # no git here
        commit = "unknown"
    run.mkdir(parents=True, exist_ok=True)
    origin = {"commit": commit, "command": f"python -m training train {recipe.name}"}
    path.write_text(json.dumps(origin), encoding="utf-8")


def read_origin(run: Path) -> dict[str, str]:
    origin: dict[str, str] = json.loads((run / "origin.json").read_text(encoding="utf-8"))
    return origin


@dataclass(frozen=True)
class Publication:
    """Where a checkpoint is published, and with which say."""

    store: Store
    aliases: tuple[str, ...] = ()  #: that shall stand for it
    forced_for: str = ""  #: the reason to publish although a gate fails; "" = do not


def publish(config: Config, run: Path, publication: Publication, pack_to: Path | None = None) -> str:
    """Puts the measured checkpoint of ``run`` into the store, and packed into ``pack_to``; returns its version.

    Raises ``RunError`` if the run was not evaluated, another export was, or a gate fails; nothing is changed then.
    """
    evaluation = _read_evaluation(run, run / "export")
    check_new(pack_to)
    store, by = publication.store, who()
    failed = failed_gates(config.publish.gate, evaluation, _incumbents(publication))
    note = ""
    if failed and not publication.forced_for:
        lines = "".join(f"\n  {gate}" for gate in failed)
        raise RunError(
            f"not published, gates failed:{lines}\ntrain further, change [publish.gate] of the recipe, or publish with "
            "--force --reason TEXT"
        )
    if failed:
        when = datetime.now(UTC).isoformat(timespec="seconds")
        note = f"forced by {by} at {when}: {publication.forced_for}; failed gates: {'; '.join(failed)}"
    with tempfile.TemporaryDirectory(dir=run, prefix="publish.") as folder:
        pieces = Roles.load(run / "export" / "roles.json").emitted_as
        previous = previous_token_ids(publication, Path(folder), len(pieces))
        artifact = write(config, run, Path(folder), {**evaluation, "forced": note} if note else evaluation, previous)
        version = store.publish(artifact, aliases=publication.aliases, by=by, note=note)
        if pack_to:
            pack(artifact, pack_to)
    return version


def check_new(pack_to: Path | None) -> None:
    """Raises ``RunError`` if there is something at the place of the packed form."""
    if pack_to and pack_to.exists():
        raise RunError(f"{pack_to}: exists already; remove it or name another directory for --pack")


def _incumbents(publication: Publication) -> dict[str, Mapping[str, Any]]:
    aliases = publication.store.aliases()
    versions = [aliases[name].version for name in publication.aliases if name in aliases]
    return {version: publication.store.manifest(version).evaluation for version in versions}


def previous_token_ids(publication: Publication, folder: Path, vocabulary_size: int) -> dict[str, int]:
    """Those of the incumbent, or else of the newest version: a token keeps its id. A version without a table has the
    ids of its vocabulary, which matters once ours is too large for that."""
    store = publication.store
    versions = [*_incumbents(publication), *reversed(store.versions())]
    if not versions:
        return {}
    content = store.read_file(versions[0], TOKEN_IDS)
    if content is not None:
        (folder / TOKEN_IDS).write_bytes(content)
        return read_token_ids(folder)
    if vocabulary_size <= MAX_TOKEN_IDS:
        return {}
    never = set(store.manifest(versions[0]).never_emitted_ids)
    before = BackendTokenizer.from_str((store.read_file(versions[0], "tokenizer.json") or b"").decode())
    return {token: i for token, i in before.get_vocab().items() if i not in never}


def write(
    config: Config, run: Path, folder: Path, evaluation: Mapping[str, Any], previous_token_ids: Mapping[str, int]
) -> Path:
    """Writes the artifact into ``folder`` under its version id; returns its path."""
    exported = run / "export"
    origin = read_origin(run)
    roles = Roles.load(exported / "roles.json")
    tokenizer = Tokenizer.from_file(exported / "tokenizer.json")
    model = SpladeModel.from_pretrained(exported, roles.never_emitted)
    texts = list(GOLDEN_TEXTS)
    lengths: dict[InputType, int] = {
        "document": config.publish.max_length_document,
        "query": config.publish.max_length_query,
    }
    golden = []
    for kind, length in lengths.items():
        for text, vector in zip(texts, encode(model, tokenizer, texts, max_length=length), strict=True):
            golden.append(GoldenVector(text, kind, tuple(vector.ids.tolist()), tuple(vector.weights.tolist())))
    sample = texts[:4]
    examples = {
        text: vector.prune(top_k=10).to_words(tokenizer.vocabulary)
        for text, vector in zip(sample, encode(model, tokenizer, sample, max_length=64), strict=True)
    }
    weights = weights_hash(exported)
    version = f"{config.name}-{datetime.now(UTC):%Y%m%d}-{weights[:8]}"
    description = Description(
        version=version,
        architecture=_architecture(model),
        activation="log1p_relu",
        max_length_document=config.publish.max_length_document,
        max_length_query=config.publish.max_length_query,
        vocabulary_size=len(roles.emitted_as),
        never_emitted_ids=tuple(roles.never_emitted),
        golden_tolerance=GOLDEN_TOLERANCE,
        evaluation=evaluation,
        training=TrainingOrigin(
            commit=origin["commit"],
            command=origin["command"],
            base=_base(config),
            data_origin=config.data.origin,
        ),
    )

    def fill(directory: Path) -> None:
        for file in exported.iterdir():
            if file.name != "roles.json":
                shutil.copyfile(file, directory / file.name)  # not its owner-only mode
        add_loaders(directory, description.architecture)
        write_golden(directory / "golden.jsonl", golden)
        query_tokens(run, roles, default=config.publish.query_encoding == "inference_free").write(directory)
        write_token_ids(directory, tokenizer.vocabulary, roles.never_emitted, previous_token_ids)
        (directory / "README.md").write_text(model_card(description, examples, config.publish.limits), encoding="utf-8")

    return write_artifact(folder / version, fill, lambda _: description)


def _architecture(model: SpladeModel) -> Architecture:
    name = type(model.mlm).__name__
    for known in get_args(Architecture):
        if name == known:
            architecture: Architecture = known
            return architecture
    raise RunError(f"{name} cannot be published: known are {', '.join(get_args(Architecture))}")


def _base(config: Config) -> str:
    starts = {"fresh": "none", "pretrained": config.model.checkpoint}
    return starts.get(config.model.start, "intfloat/multilingual-e5-small")


def weights_hash(exported: Path) -> str:
    """Ties an evaluation to the weights that it measured."""
    return file_record(exported / "model.safetensors").sha256


def _read_evaluation(run: Path, exported: Path) -> dict[str, Any]:
    path = run / "evaluation.json"
    if not path.is_file():
        raise RunError(f"{path}: missing; run `python -m training evaluate` first: a model carries its figures")
    report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if report.get("weights_sha256") != weights_hash(exported):
        raise RunError(f"{path}: measured other weights than {exported} holds; run `python -m training evaluate` again")
    return report
