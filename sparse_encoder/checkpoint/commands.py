"""`python -m sparse_encoder inspect` and `convert`."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any, get_args

from sparse_encoder.artifact import Activation, Pooling, read_artifact
from sparse_encoder.checkpoint import inspection
from sparse_encoder.checkpoint.convert import GoldenMaker, convert
from sparse_encoder.checkpoint.directory import SourceError
from sparse_encoder.checkpoint.locate import Located, locate, open_located
from sparse_encoder.checkpoint.shapes import is_artifact
from sparse_encoder.checkpoint.source import Choices, Source, read_pair, read_source

_SAMPLE = "손해배상"
_MODEL = "directory, or owner/name or owner/name/folder on the hub, optionally with @revision"
_NO_TORCH = "torch and transformers are not installed (the extra train)"


def add_parsers(commands: Any) -> None:
    inspect = commands.add_parser("inspect", help="what a checkpoint is, and whether it will be served")
    inspect.add_argument("model", help=_MODEL)
    inspect.add_argument("--text", default=_SAMPLE, help=f"text of the sample (default {_SAMPLE})")
    inspect.set_defaults(run=_inspect)
    convert = commands.add_parser("convert", help="write a checkpoint as an artifact")
    convert.add_argument("model", help=_MODEL)
    convert.add_argument("out", type=Path, help="directory to write; it must not exist")
    for command in (inspect, convert):
        command.add_argument("--query-model", help="the checkpoint that encodes queries, where that is another one")
    for side in ("document", "query"):
        convert.add_argument(f"--max-length-{side}", type=int, help="tokens; instead of what the checkpoint says")
    convert.add_argument("--activation", choices=get_args(Activation), help="instead of what the checkpoint says")
    convert.add_argument("--pooling", choices=get_args(Pooling), help="instead of what the checkpoint says")
    convert.set_defaults(run=_convert)


def _inspect(options: argparse.Namespace) -> None:
    found = locate(options.model)
    if is_artifact(found.path) and options.query_model is None:
        with tempfile.TemporaryDirectory(prefix="inspect-") as folder:
            artifact = open_located(found, Path(folder))
            _print(*inspection.of_artifact(artifact.path, artifact.manifest))
            try:
                _print(inspection.sample(artifact, options.text))
            except ImportError:
                _print(f"sample: none, {_NO_TORCH}")
    else:
        source = _read(found, options.query_model, Choices())
        _print(*inspection.of_source(source))
        _sample(source, options.text)
    _print("will be served: yes")


def _sample(source: Source, text: str) -> None:
    """Converts it for the time being, so that its weights are read and checked as for serving."""
    reference = _reference()
    if reference is None:
        source.weights()
        _print(f"sample: none, {_NO_TORCH}")
        return
    with tempfile.TemporaryDirectory(prefix="inspect-") as folder:
        artifact = read_artifact(convert(source, Path(folder) / "artifact", reference))
        _print(inspection.sample(artifact, text))


def _convert(options: argparse.Namespace) -> None:
    reference = _reference()
    if reference is None:
        raise SourceError(
            f"an artifact carries vectors computed by other software than serves it, and {_NO_TORCH}: install them, or "
            "give the checkpoint to the service (--model), which converts it by itself"
        )
    found = locate(options.model)
    if is_artifact(found.path):
        raise SourceError(f"{found.path} is an artifact already: serve it as it is")
    choices = Choices(**{name: getattr(options, name) for name in Choices.__dataclass_fields__})
    source = _read(found, options.query_model, choices)
    convert(source, options.out, reference)
    _print(f"{options.out}: {source.version}")


def _read(found: Located, query_model: str | None, choices: Choices) -> Source:
    if query_model is None:
        return read_source(found.path, found.name, choices, found.revision)
    return read_pair(found, locate(query_model), choices)


def _reference() -> GoldenMaker | None:
    try:
        from sparse_encoder.checkpoint.reference import REFERENCE
    except ImportError:
        return None
    return REFERENCE


def _print(*lines: str) -> None:
    sys.stdout.writelines(f"{line}\n" for line in lines)
