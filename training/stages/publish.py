"""Stage 10: what was measured becomes a version in a store, if the recipe's gates let it."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as BackendTokenizer

from sparse_encoder.artifact import (
    TOKEN_IDS,
    Description,
    GoldenVector,
    InputType,
    TrainingOrigin,
    write_artifact,
    write_golden,
)
from sparse_encoder.checkpoint.golden import GOLDEN_TEXTS, GOLDEN_TOLERANCE
from sparse_encoder.model import SpladeModel
from sparse_encoder.packed import pack
from sparse_encoder.store import Store, who
from sparse_encoder.token_ids import MAX_TOKEN_IDS, read_token_ids, write_token_ids
from sparse_encoder.tokenizer import Tokenizer
from training.card import model_card
from training.config import Config, RunError
from training.encode import encode
from training.export import weights_hash
from training.gate import failed_gates
from training.loaders import add_loaders
from training.run import Run, read_origin
from training.stages.evaluate import EXPORT, REPORT
from training.stages.lexical import query_tokens
from training.vocabulary import Roles


@dataclass(frozen=True)
class Publication:
    """Where a checkpoint is published, and with which say."""

    store: Store
    aliases: tuple[str, ...] = ()  #: that shall stand for it
    forced_for: str = ""  #: the reason to publish although a gate fails; "" = do not
    new_token_ids: bool = False  #: number the tokens for ``sparse_vector`` fields anew


def publish_stage(run: Run, publication: Publication, pack_to: Path | None = None) -> str:
    """Puts the measured checkpoint of ``run`` into the store, and packed into ``pack_to``; returns its version.

    Raises ``RunError`` if the run was not evaluated, another export was, or a gate fails; nothing is changed then.
    """
    evaluation = _read_evaluation(run.path)
    check_new(pack_to)
    config, exported = run.config, run.path / EXPORT
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
    with tempfile.TemporaryDirectory(dir=run.path, prefix="publish.") as folder:
        pieces = Roles.load(exported / "roles.json").emitted_as
        previous = previous_token_ids(publication, Path(folder), len(pieces))
        if note:
            evaluation["forced"] = note
        artifact = write(config, run.path, Path(folder), evaluation, previous)
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
    """Those of the incumbent, or else of the newest version: a token keeps its id, unless all are numbered anew. A
    version without a table has the ids of its vocabulary, which matters once ours is too large for that."""
    store = publication.store
    versions = [*_incumbents(publication), *reversed(store.versions())]
    if not versions or publication.new_token_ids:
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
    exported = run / EXPORT
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
        architecture=model.architecture,
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
        query_tokens(run, exported, roles, config.publish).write(directory)
        write_token_ids(directory, tokenizer.vocabulary, roles.never_emitted, previous_token_ids)
        (directory / "README.md").write_text(model_card(description, examples, config.publish.limits), encoding="utf-8")

    return write_artifact(folder / version, fill, lambda _: description)


def _base(config: Config) -> str:
    starts = {"fresh": "none", "pretrained": config.model.checkpoint}
    return starts.get(config.model.start, "intfloat/multilingual-e5-small")


def _read_evaluation(run: Path) -> dict[str, Any]:
    path = run / REPORT
    if not path.is_file():
        raise RunError(f"{path}: missing; run `python -m training evaluate` first: a model carries its figures")
    if not (run / EXPORT).is_dir():
        raise RunError(f"{run / EXPORT}: missing; run `python -m training evaluate` again, which writes it")
    report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if report.get("weights_sha256") != weights_hash(run / EXPORT):
        raise RunError(
            f"{path}: measured other weights than {run / EXPORT} holds; run `python -m training evaluate` again"
        )
    return report
