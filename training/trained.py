"""The checkpoint that a run goes on from: what an earlier run trained, or what was published of it."""

from __future__ import annotations

import shutil
from pathlib import Path

from sparse_encoder.artifact import MANIFEST, ArtifactError, read_artifact
from sparse_encoder.model import load_masked_lm
from sparse_encoder.modeling_lexical_bert import LexicalBertForMaskedLM
from sparse_encoder.packed import unpack
from training.config import RunError
from training.run import Run
from training.vocabulary import Roles


def trained_checkpoint(run: Run) -> Path:
    """``model.checkpoint`` if it is the ``train/final`` of a run; for a published LexicalBert, packed or not, a
    checkpoint that is made of it in ``run``. Raises ``RunError``."""
    named = Path(run.config.model.checkpoint)
    if (named / "roles.json").is_file():
        return named
    return run.result("start", lambda folder: _of_published(named, folder))


def _of_published(named: Path, out: Path) -> None:
    if not (named / MANIFEST).is_file():
        raise RunError(
            f"model.checkpoint {named}: no trained checkpoint there; name the train/final of a run, or a published "
            "model's directory"
        )
    try:
        if any(named.glob("packed-*.safetensors")):
            out.rmdir()  # which `unpack` makes
            unpack(named, out)
        else:
            read_artifact(named)
            shutil.copytree(named, out, dirs_exist_ok=True)
    except ArtifactError as error:
        raise RunError(f"model.checkpoint {named}: {error}") from error
    mlm = load_masked_lm(out)
    if not isinstance(mlm, LexicalBertForMaskedLM):
        raise RunError(f'model.checkpoint {named}: no LexicalBert; go on from it with model.start = "pretrained"')
    last = mlm.last_token.tolist() if mlm.config.parts else []
    Roles(mlm.own_token.tolist(), last).save(out / "roles.json")
