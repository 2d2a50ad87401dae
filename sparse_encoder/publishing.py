"""`python -m sparse_encoder store URL publish`: a model that exists already comes into a store, if it passes the gates.

The gates need no encoder: they compare what the publishers of both models computed. A service checks more when it loads
a version, such as that it reproduces its golden vectors.
"""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from sparse_encoder.artifact import MANIFEST, Artifact, ArtifactError, GoldenVector, InputType, read_artifact
from sparse_encoder.packed import HEADER_SUFFIX, unpack
from sparse_encoder.store import Store, StoreRefusal, who

#: Stands for the model that the service carries.
EMBEDDED = "embedded"
#: Active tokens of a golden vector on average.
FEWEST_TOKENS, MOST_TOKENS = 2, 2000
#: Share of so many heaviest tokens of the golden texts of both models that they have in common, at least.
TOP_TOKENS, LEAST_OVERLAP = 10, 0.3


def publish(store: Store, model: str, aliases: Sequence[str], *, note: str = "", forced: bool = False) -> str:
    """Publishes the artifact at `model` and points `aliases` at it; returns its version. `forced`: whatever gates say.

    :raises ArtifactError: if there is none, or it is damaged.
    :raises StoreRefusal: if a gate fails; nothing is changed then.
    :raises StoreError: as `Store.publish`.
    """
    with tempfile.TemporaryDirectory(prefix="publish-") as folder:
        artifact = _open(model, Path(folder))
        known = store.aliases()
        held = {known[alias].version for alias in aliases if alias in known} - {artifact.manifest.version}
        failed = [*_alone(artifact)]
        for version in sorted(held):
            failed += _beside(artifact, store.fetch(version, Path(folder) / "held"))
        if failed and not forced:
            lines = "".join(f"\n  {gate}" for gate in failed)
            raise StoreRefusal(f"not published, gates failed:{lines}\npublish with --force --note TEXT if it is meant")
        if failed:
            note = f"{note}; failed gates: {'; '.join(failed)}"
        return store.publish(artifact.path, aliases=aliases, by=who(), note=note)


def _open(model: str, folder: Path) -> Artifact:
    path = _embedded() if model == EMBEDDED else Path(model)
    if not (path / MANIFEST).is_file():
        raise ArtifactError(
            f"{path} holds no artifact (no {MANIFEST}): give the directory of one, or `{EMBEDDED}`; what others "
            "published is made one by `python -m sparse_encoder convert`"
        )
    return unpack(path, folder / "unpacked") if any(path.glob(f"*{HEADER_SUFFIX}")) else read_artifact(path)


def _embedded() -> Path:
    found = importlib.util.find_spec("app")
    if found is None or not found.submodule_search_locations:
        raise ArtifactError("the service is not installed here, and so no embedded model: give a directory")
    return Path(found.submodule_search_locations[0]) / "embedded"


def _alone(artifact: Artifact) -> Iterator[str]:
    counts = [len(golden.ids) for golden in artifact.golden()]
    active = sum(counts) / max(1, len(counts))
    if not FEWEST_TOKENS <= active <= MOST_TOKENS:
        yield (
            f"its golden vectors have {active:.1f} active tokens on average, outside of {FEWEST_TOKENS} to "
            f"{MOST_TOKENS}: its training collapsed"
        )


def _beside(new: Artifact, held: Artifact) -> Iterator[str]:
    if new.manifest.vocabulary_sha256 != held.manifest.vocabulary_sha256:
        yield (
            f"its tokenizer or token ids are not those of {held.manifest.version}, so what was indexed before would "
            "not be found: publish it under another alias and re-index"
        )
        return
    before, now = _by_text(held), _by_text(new)
    shares = [
        len({*before[text].ids[:TOP_TOKENS]} & {*now[text].ids[:TOP_TOKENS]}) / len(before[text].ids[:TOP_TOKENS])
        for text in before.keys() & now.keys()
        if before[text].ids
    ]
    if shares and (overlap := sum(shares) / len(shares)) < LEAST_OVERLAP:
        yield (
            f"only {overlap:.0%} of the {TOP_TOKENS} heaviest tokens of the golden texts of {held.manifest.version} "
            f"are among its own, less than {LEAST_OVERLAP:.0%}: see whether it is a worse model"
        )


def _by_text(artifact: Artifact) -> dict[tuple[str, InputType], GoldenVector]:
    return {(golden.text, golden.input_type): golden for golden in artifact.golden()}
