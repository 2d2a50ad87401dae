"""From what a user calls a checkpoint to a directory: a path, or a name on the hub."""

from __future__ import annotations

import re
import shutil
import sys
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from sparse_encoder.artifact import (
    MANIFEST,
    Artifact,
    ArtifactExistsError,
    new_directory,
    read_artifact,
    read_manifest,
)
from sparse_encoder.checkpoint.directory import SourceError
from sparse_encoder.checkpoint.shapes import is_artifact
from sparse_encoder.checkpoint.tensors import CONVERT
from sparse_encoder.checkpoint.weights import PICKLES

#: owner/name, optionally a folder in it, and optionally @ and a branch, tag or commit. No part begins with a dot, so
#: none leads out of anything.
HUB_NAME = re.compile(
    r"(?P<repository>\w[\w.-]*/\w[\w.-]*)(?:/(?P<folder>\w[\w.-]*(?:/\w[\w.-]*)*))?"
    r"(?:@(?P<revision>\w[\w.-]*(?:/\w[\w.-]*)*))?",
    re.ASCII,
)
#: What is downloaded: weights that hold no code, and texts; of an artifact of ours, what its manifest names.
FILES = ["*.safetensors", "*.json", "*.txt", "*.model", "sparse_linear.pt", "README.md", "LICENSE", "NOTICE"]
#: And this where there are no safetensors; of these files tensors alone are read.
TORCH_FILES = "pytorch_model*.bin"


@dataclass(frozen=True, slots=True)
class Located:
    """A checkpoint on this machine."""

    path: Path
    name: str  #: for a version id and for messages
    revision: str = "none"  #: the commit on the hub


def locate(model: str) -> Located:
    """The directory `model`, or the checkpoint of that name on the hub, downloaded if it is not in the hub's cache.

    :raises SourceError: if there is neither, it cannot be reached, or it holds no safetensors.
    """
    path = Path(model)
    if path.is_dir():
        return Located(path, path.resolve().name)
    name = HUB_NAME.fullmatch(model)
    if not name or ".." in model:
        raise SourceError(
            f"{model!r} is no directory and no name on the hub: give the path of a checkpoint, or owner/name or "
            "owner/name/folder, optionally with @revision"
        )
    return _download(name["repository"], name["folder"], name["revision"])


def open_located(located: Located, cache_dir: Path) -> Artifact:
    """The artifact of ours at `located`; one from the hub, whose cache is made of links, is copied into `cache_dir`.

    :raises ArtifactError: if it is damaged.
    """
    if located.revision == "none":
        return read_artifact(located.path)
    manifest = read_manifest(located.path)
    target = cache_dir / "hub" / f"{manifest.version}-{located.revision[:12]}"
    with suppress(ArtifactExistsError), new_directory(target) as directory:
        for name in (*manifest.files, MANIFEST):
            if (located.path / name).is_file():
                shutil.copyfile(located.path / name, directory / name)
        read_artifact(directory)
    return read_artifact(target)


def _download(repository: str, folder: str | None, revision: str | None) -> Located:
    place = f"{folder}/" if folder else ""
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.constants import HF_HUB_CACHE
        from huggingface_hub.errors import DryRunError, HfHubHTTPError, LocalEntryNotFoundError
        from huggingface_hub.utils.tqdm import disable_progress_bars
    except ImportError as error:
        raise SourceError(
            f"{repository} is no directory here, and the hub takes another package: install the extra hub "
            "(pip install '.[hub]'), or download the checkpoint and give its directory"
        ) from error
    if not sys.stderr.isatty():
        disable_progress_bars()
    try:
        patterns = [place + pattern for pattern in FILES]
        with suppress(DryRunError):  # offline, or the hub is away: the cache may hold all of it
            everything = [*patterns, *(f"{place}*{ending}" for ending in PICKLES)]
            files = snapshot_download(repository, revision=revision, dry_run=True, allow_patterns=everything)
            patterns += _more_patterns(repository, place, [file.filename for file in files])
            wanted = [file for file in files if file.will_download and matches(file.filename, patterns)]
            _check_room(repository, sum(file.file_size or 0 for file in wanted), HF_HUB_CACHE)
        path = Path(snapshot_download(repository, revision=revision, allow_patterns=patterns))
        named = path / place
        if is_artifact(named):  # all of it, since its manifest says what each file must be
            files_of_it = [place + name for name in read_manifest(named).files]
            snapshot_download(repository, revision=path.name, allow_patterns=files_of_it)
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise SourceError(
            f"{repository} cannot be had from the hub ({type(error).__name__}: {reason}): see that the name and the "
            "revision are right, that HF_TOKEN may read it, and that it was downloaded before if HF_HUB_OFFLINE is set"
        ) from error
    if not named.is_dir():
        raise SourceError(f"{repository} has no folder {folder} with a checkpoint in it: see that the name is right")
    return Located(named, f"{repository}/{folder}" if folder else repository, path.name)


def _more_patterns(repository: str, place: str, names: list[str]) -> list[str]:
    """What is downloaded besides `FILES` of a repository that has files of these `names` in the folder `place`."""
    if any(name.endswith(".safetensors") for name in names):
        return []
    pickles = [name for name in names if name.endswith(PICKLES)]
    if pickles and not any(matches(name, [place + TORCH_FILES]) for name in names):
        raise SourceError(
            f"{repository} has its weights in {pickles[0]} only, a pickle, which can run any code when it is read: it "
            f"is not downloaded. Convert it where you trust it, with torch, in its directory: {CONVERT}"
        )
    return [place + TORCH_FILES]


def matches(name: str, patterns: list[str]) -> bool:
    """As the hub's own client compares them."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _check_room(repository: str, needed: int, cache: str) -> None:
    folder = next(parent for parent in (Path(cache), *Path(cache).absolute().parents) if parent.is_dir())
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise SourceError(
            f"downloading {repository} takes {needed / 1e6:,.0f} MB, {folder} has {free / 1e6:,.0f} MB: free some, or "
            "set HF_HOME to another directory"
        )
