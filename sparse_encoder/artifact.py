"""The published model: a directory that training writes and serving reads, complete and unchanged or not at all.

It is an ordinary `transformers` checkpoint with two files beside it: `golden.jsonl` (texts and their vectors) and
`manifest.json` (what the model is, and the hash of every other file). The directory is flat and holds nothing that
the manifest does not name.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, TypeVar

from sparse_encoder import typed_json
from sparse_encoder.architectures import Architecture
from sparse_encoder.disk import fsync

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
GOLDEN = "golden.jsonl"
TOKENIZER = "tokenizer.json"
TOKEN_IDS = "token_ids.json"
WEIGHTS_SUFFIX = ".safetensors"
CONFIG = "config.json"
REQUIRED_FILES = frozenset({"README.md", CONFIG, GOLDEN, TOKENIZER})
QUERY_PREFIX = "query."  #: of the names of config.json and weights of an encoder for queries

InputType = Literal["document", "query"]
#: Of each logit: log(1 + relu(x)), log(1 + log(1 + relu(x))), or relu(x).
Activation = Literal["log1p_relu", "log1p_log1p_relu", "relu"]
#: Over a text's positions, of what the activation gives.
Pooling = Literal["max", "sum"]

#: Output bias of what is never emitted, so that other software that runs the weights does not emit it either.
CLOSED_BIAS = -1e4

# No separator and no leading dot: such a name stays in its directory. A model version also travels in an HTTP header.
SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")

T = TypeVar("T")


class ArtifactError(Exception):
    """The directory is not a usable artifact. The message says why, and what to do."""


class ArtifactExistsError(ArtifactError):
    """Something is already where the directory was to be written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingOrigin:
    """Where the weights come from."""

    commit: str  #: of the training code
    command: str
    base: str  #: the pretrained model that training started from, or "none"
    data_origin: tuple[str, ...]  #: one line for each source, with its licence


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRecord:
    """What a file of the directory must be."""

    sha256: str
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class QueryEncoder:
    """An encoder that queries have for themselves. Tokenizer and vocabulary are those of the documents' encoder."""

    architecture: Architecture
    activation: Activation
    pooling: Pooling = "max"


@dataclass(frozen=True, kw_only=True)
class Description:
    """What the publisher says about the model.

    :raises ArtifactError: if a value makes no sense.
    """

    version: str  #: model version id, such as "ko-v0-20261124-ab12cd34"
    architecture: Architecture
    activation: Activation
    pooling: Pooling = "max"
    max_length_document: int  #: tokens, with the special ones
    max_length_query: int  #: tokens, with the special ones
    vocabulary_size: int
    never_emitted_ids: tuple[int, ...]  #: ascending; closed in the weights by their decoder bias, listed to be checked
    prompt_document: str = ""  #: stands before each text; a blank one stays blank
    prompt_query: str = ""
    max_active_tokens: int = 0  #: kept of a vector unless somebody asks for another number; 0: all
    query_encoder: QueryEncoder | None = None  #: None: one encoder for both
    golden_tolerance: float  #: the largest absolute difference of a weight from golden.jsonl
    evaluation: Mapping[str, Any]  #: figures, as any JSON object
    training: TrainingOrigin

    def __post_init__(self) -> None:
        if not SAFE_NAME.fullmatch(self.version):
            raise ArtifactError(f"version {self.version!r} must be letters, digits and ._- (at most 128): rename it")
        if min(self.max_length_document, self.max_length_query) < 3:
            raise ArtifactError("max_length_document and max_length_query must be at least 3: [CLS], a token, [SEP]")
        if not 0 < self.golden_tolerance < math.inf:
            raise ArtifactError(f"golden_tolerance must be positive and finite, got {self.golden_tolerance}")
        if self.max_active_tokens < 0:
            raise ArtifactError(f"max_active_tokens must be 0 or more, got {self.max_active_tokens}")
        never = self.never_emitted_ids
        if list(never) != sorted(set(never)) or any(not 0 <= id_ < self.vocabulary_size for id_ in never):
            raise ArtifactError(
                f"never_emitted_ids must ascend without repeats and be below vocabulary_size {self.vocabulary_size}"
            )

    def prompted(self, text: str, input_type: InputType) -> str:
        """`text` as the model reads it."""
        prompt = self.prompt_query if input_type == "query" else self.prompt_document
        return prompt + text if prompt and text.strip() else text


@dataclass(frozen=True, kw_only=True)
class Manifest(Description):
    """The content of `manifest.json`: the description, and what was measured when it was written."""

    format_version: int
    created: str  #: UTC, ISO 8601
    files: Mapping[str, FileRecord]  #: every file of the directory but the manifest
    tokenizer_sha256: str

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.files:
            if not SAFE_NAME.fullmatch(name) or name == MANIFEST:
                raise ArtifactError(
                    f"{MANIFEST} names {name!r}, which is no plain file name: do not trust this artifact"
                )
        prefixes = ("", QUERY_PREFIX) if self.query_encoder else ("",)
        missing = REQUIRED_FILES.union(prefix + CONFIG for prefix in prefixes) - self.files.keys()
        if missing:
            raise ArtifactError(f"an artifact needs {', '.join(sorted(missing))}: add the files and publish again")
        for prefix in prefixes:
            if not any(is_weights(name, prefix) for name in self.files):
                what = f"weights in a {prefix}*{WEIGHTS_SUFFIX} file"
                raise ArtifactError(f"an artifact needs {what}: add them and publish again")
        if self.tokenizer_sha256 != self.files[TOKENIZER].sha256:
            raise ArtifactError(f"tokenizer_sha256 is not the hash of {TOKENIZER}: publish the model again")

    @property
    def weight_files(self) -> list[str]:
        return sorted(name for name in self.files if name.endswith(WEIGHTS_SUFFIX))

    @property
    def weight_bytes(self) -> int:
        return sum(self.files[name].bytes for name in self.weight_files)

    @property
    def vocabulary_sha256(self) -> str:
        """What the keys of vectors depend on: an index built by one version serves another of equal value."""
        tables = (TOKENIZER, TOKEN_IDS)
        hashes = (self.files[name].sha256 if name in self.files else "" for name in tables)
        return hashlib.sha256(" ".join(hashes).encode()).hexdigest()

    def to_json(self) -> str:
        """What a default says already is left out, so that software from before the field still reads the manifest.

        :raises ArtifactError: if `evaluation` is no JSON (NaN, say).
        """
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        document = {name: value for name, value in dataclasses.asdict(self).items() if value != defaults[name]}
        try:
            return json.dumps(document, ensure_ascii=False, allow_nan=False, indent=2) + "\n"
        except (TypeError, ValueError) as error:
            raise ArtifactError(
                f"the evaluation figures are no JSON ({error}): use finite numbers and strings"
            ) from error

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """:raises ArtifactError: if `text` is no manifest of the format this code reads; names the wrong field."""
        document = _parse(text, MANIFEST)
        version = document.get("format_version") if isinstance(document, dict) else None
        if version != FORMAT_VERSION:
            raise ArtifactError(
                f"{MANIFEST} has format_version {version!r}, this software reads {FORMAT_VERSION}: "
                "publish the model again, or use the software that wrote it"
            )
        return _build(cls, document, MANIFEST)


@dataclass(frozen=True, slots=True)
class GoldenVector:
    """A text and the vector that the training code gave it, unpruned."""

    text: str
    input_type: InputType
    ids: tuple[int, ...]
    weights: tuple[float, ...]  #: as long as `ids`, in its order

    def __post_init__(self) -> None:
        if len(self.ids) != len(self.weights):
            raise ArtifactError(
                f"a golden vector has {len(self.ids)} ids but {len(self.weights)} weights: write it again"
            )


@dataclass(frozen=True, slots=True)
class Artifact:
    """A directory that `read_artifact` found complete and unchanged, or one of the two encoders in it."""

    path: Path
    manifest: Manifest
    prefix: str = ""  #: of the names of `config.json` and weights

    @property
    def config(self) -> Path:
        return self.path / f"{self.prefix}{CONFIG}"

    def part(self, input_type: InputType) -> Artifact:
        """What encodes texts of this type: itself, or one of its two encoders as if it were alone."""
        manifest, queries = self.manifest, self.manifest.query_encoder
        if queries is None:
            return self
        length = manifest.max_length_query if input_type == "query" else manifest.max_length_document
        alone = replace(manifest, query_encoder=None, max_length_document=length, max_length_query=length)
        if input_type == "document":
            return replace(self, manifest=alone)
        fields: dict[str, Any] = dataclasses.asdict(queries)
        return replace(self, manifest=replace(alone, **fields), prefix=QUERY_PREFIX)

    def golden(self) -> Iterator[GoldenVector]:
        """:raises ArtifactError: at a line that holds no golden vector."""
        with (self.path / GOLDEN).open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                where = f"{GOLDEN} line {number}"
                vector = _build(GoldenVector, _parse(line, where), where)
                size = self.manifest.vocabulary_size
                if wrong := [token_id for token_id in vector.ids if not 0 <= token_id < size]:
                    raise ArtifactError(
                        f"{where} has the token id {wrong[0]}, the vocabulary has {size} tokens: publish the model "
                        "again"
                    )
                yield vector


def is_weights(name: str, prefix: str) -> bool:
    """Whether a file called `name` holds weights of the encoder whose files have the `prefix`, or of documents."""
    return name.endswith(WEIGHTS_SUFFIX) and name.startswith(QUERY_PREFIX) == bool(prefix)


def write_golden(path: Path, vectors: Iterable[GoldenVector]) -> None:
    """Writes `golden.jsonl`; `path` is the file."""
    with path.open("w", encoding="utf-8") as file:
        for vector in vectors:
            file.write(json.dumps(dataclasses.asdict(vector), ensure_ascii=False, allow_nan=False) + "\n")


def write_artifact(target: Path, fill: Callable[[Path], None], describe: Callable[[Path], Description]) -> Path:
    """Publishes a model as the new directory `target` and returns its path.

    `fill` writes every file but the manifest into the directory it is given; then `describe` is called with the same
    directory, so that a description can depend on what was written. `target` appears only once everything is on disk
    and passes `read_artifact`; if anything fails, it never appears.

    :raises ArtifactExistsError: if `target` exists.
    :raises ArtifactError: if what was written is no artifact.
    """
    with new_directory(target) as directory:
        fill(directory)
        manifest = describe_files(directory, describe(directory))
        (directory / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
        read_artifact(directory)
    return target


def describe_files(directory: Path, description: Description) -> Manifest:
    """The manifest of what lies in `directory` now.

    :raises ArtifactError: if that is no artifact.
    """
    files = {entry.name: file_record(Path(entry)) for entry in _plain_files(directory) if entry.name != MANIFEST}
    if TOKENIZER not in files:
        raise ArtifactError(f"an artifact needs {TOKENIZER}: add the file and publish again")
    return Manifest(
        **{field.name: getattr(description, field.name) for field in dataclasses.fields(Description)},
        format_version=FORMAT_VERSION,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        files=files,
        tokenizer_sha256=files[TOKENIZER].sha256,
    )


def read_manifest(directory: Path) -> Manifest:
    """The manifest alone; the files it names are not looked at.

    :raises ArtifactError: if there is none, or it is wrong.
    """
    try:
        text = (directory / MANIFEST).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ArtifactError(
            f"{directory} has no readable {MANIFEST} ({error}): it is half written or no artifact; "
            "publish the model again, or give the path of a complete artifact"
        ) from error
    return Manifest.from_json(text)


def read_artifact(path: Path) -> Artifact:
    """The artifact at `path`, after every byte of it was checked against its manifest.

    :raises ArtifactError: if anything is missing, changed, added, or of an unknown format.
    """
    manifest = read_manifest(path)
    present = {entry.name for entry in _plain_files(path)} - {MANIFEST}
    missing, extra = manifest.files.keys() - present, present - manifest.files.keys()
    if missing or extra:
        raise ArtifactError(
            f"{path} lacks {sorted(missing)} and has {sorted(extra)} beyond its manifest: copy the whole artifact again"
        )
    for name, expected in manifest.files.items():
        size = (path / name).stat().st_size
        if size != expected.bytes:
            raise ArtifactError(f"{path / name} has {size} bytes instead of {expected.bytes}: copy the artifact again")
        if file_record(path / name) != expected:
            raise ArtifactError(f"{path / name} was changed after publishing (sha256 differs): copy the artifact again")
    artifact = Artifact(path, manifest)
    if not any(True for _ in artifact.golden()):
        raise ArtifactError(f"{path / GOLDEN} is empty: publish the model again with golden vectors")
    return artifact


@contextmanager
def new_directory(target: Path) -> Iterator[Path]:
    """A temporary sibling of `target` to fill; it is synced and becomes `target` when the block ends without error.

    :raises ArtifactExistsError: if `target` exists, or came to exist meanwhile.
    """
    if os.path.lexists(target):
        raise ArtifactExistsError(f"{target} exists and is never overwritten: choose another path, or delete it")
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.parent / f".{target.name}.{uuid.uuid4().hex}.partial"
    temporary.mkdir()
    try:
        yield temporary
        for entry in temporary.iterdir():
            fsync(entry)
        fsync(temporary)
        try:
            temporary.rename(target)
        except OSError as error:
            if os.path.lexists(target):
                raise ArtifactExistsError(f"{target} was made by another process meanwhile: use that one") from error
            raise
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    fsync(target.parent)


def file_record(path: Path) -> FileRecord:
    """The sha256 and the size of the file at `path`."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return FileRecord(sha256=digest, bytes=file.tell())


def _plain_files(directory: Path) -> list[os.DirEntry[str]]:
    with os.scandir(directory) as scan:
        entries = sorted(scan, key=lambda entry: entry.name)
    for entry in entries:
        if not entry.is_file(follow_symlinks=False):
            raise ArtifactError(
                f"{entry.path} is a link, folder or device: an artifact holds plain files only; copy it"
            )
    return entries


def _parse(text: str, where: str) -> Any:
    try:
        return typed_json.parse(text)
    except ValueError as error:
        raise ArtifactError(f"{where} is no JSON ({error}): copy the artifact or publish the model again") from error


def _build(kind: type[T], document: Any, where: str) -> T:
    try:
        return typed_json.build(kind, document, where)
    except typed_json.TypedJsonError as error:
        raise ArtifactError(f"{error}: publish the model again") from error
