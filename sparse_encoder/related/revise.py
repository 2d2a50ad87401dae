"""A new version of a model in which the table of related words differs, and nothing else."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import tokenizers
from numpy.typing import NDArray

from sparse_encoder.artifact import (
    GOLDEN,
    TOKENIZER,
    Artifact,
    ArtifactError,
    GoldenVector,
    InputType,
    describe_files,
    write_artifact,
    write_golden,
)
from sparse_encoder.lexical_tables import RELATED_TOKEN, RELATED_WEIGHT, LexicalTables
from sparse_encoder.related.changes import Change, RefusedError, Words, parse_tsv
from sparse_encoder.related.table import RelatedTable
from sparse_encoder.tokenizer import Tokenizer
from sparse_encoder.vector import SparseVector
from sparse_encoder.weights import Weights

#: The changes by hand that the table holds, so that they can be seen, and made again in a later model.
RELATED_WORDS = "related_words.tsv"
README = "README.md"
_SUFFIX = re.compile(r"-related-[0-9a-f]{8}$")
_HEADING = "\n## Related words by hand\n"
_NOTE = """{heading}
{version} is {base} with {added} relations between words added and {removed} removed by hand, without training
(`{file}`; weight 0: removed). Figures and examples are those of {base}.
"""


class Encoder(Protocol):
    def vector(self, text: str, input_type: InputType) -> SparseVector: ...


class Model:
    """A model whose table is looked at and changed."""

    def __init__(self, artifact: Artifact) -> None:
        """:raises ArtifactError: if it has no table of related words."""
        self.artifact = artifact
        path = artifact.path
        self.tables = LexicalTables.read(path)
        self.tokenizer = Tokenizer.from_file(path / TOKENIZER)
        self.words = Words(
            tokenizers.Tokenizer.from_file(str(path / TOKENIZER)), self.tokenizer.vocabulary, self.tables
        )
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
        with Weights(path) as weights:
            self.table = RelatedTable(
                self.tables, weights["own_weight"], weights["decoder.bias"], config["related_power"]
            )
        #: Weights by word and related word; 0: removed.
        self.by_hand: dict[tuple[int, int], float] = {}
        if RELATED_WORDS in artifact.manifest.files:
            ids = {token: token_id for token_id, token in enumerate(self.tokenizer.vocabulary)}
            with (path / RELATED_WORDS).open(encoding="utf-8") as lines:
                for change in parse_tsv(lines, RELATED_WORDS):
                    self.by_hand[ids[change.word], ids[change.related]] = change.weight or 0.0

    def name(self, word: int) -> str:
        return self.tokenizer.vocabulary[word]

    def by_hand_tsv(self) -> str:
        rows = sorted((self.name(word), self.name(other), weight) for (word, other), weight in self.by_hand.items())
        return "".join(f"{word}\t{other}\t{weight:.5g}\n" for word, other, weight in rows)


@dataclass(slots=True)
class Outcome:
    """What became of some changes."""

    made: list[str]  #: one line each
    refused: list[str]  #: one line each, with the reason
    words: set[int]  #: whose rows are others now


def apply(model: Model, changes: Sequence[Change]) -> Outcome:
    """Changes the table of `model`, one row after the other."""
    outcome = Outcome([], [], set())
    for change in changes:
        try:
            word, related = model.words.find(change.word), model.words.find(change.related)
            pairs = [(word, related), (related, word)][: 1 + change.both]
            made = _removed(model, pairs) if change.weight == 0 else _added(model, pairs, change.weight)
        except RefusedError as error:
            outcome.refused.append(f"{change}: {error}")
            continue
        outcome.made += made
        outcome.words |= {pair[0] for pair in pairs}
    return outcome


def _added(model: Model, pairs: list[tuple[int, int]], weight: float | None) -> list[str]:
    places = [model.table.place(*pair, model.by_hand) for pair in pairs]  # before anything is changed
    lines = []
    for (word, related), place in zip(pairs, places, strict=True):
        given = float(f"{weight or model.table.default_weight(word, related):.5g}")
        gone = model.table.put(word, related, given, place)
        model.by_hand[word, related] = given
        room = "" if gone is None else f", in place of {model.name(gone)}, the weakest of its row"
        lines.append(f"+ {model.name(word)} → {model.name(related)} {given:g}{room}")
    return lines


def _removed(model: Model, pairs: list[tuple[int, int]]) -> list[str]:
    dropped = [pair for pair in pairs if model.table.drop(*pair)]
    if not dropped:
        raise RefusedError("the model does not relate them")
    model.by_hand |= dict.fromkeys(dropped, 0.0)
    return [f"- {model.name(word)} → {model.name(related)}" for word, related in dropped]


def write(model: Model, outcome: Outcome, folder: Path, load: Callable[[Artifact], Encoder] | None) -> Path:
    """Writes the changed `model` as an artifact in `folder`, under its new version; returns its path.

    A golden vector of a text that holds a word whose row changed is computed anew by what `load` makes of the new
    artifact; without `load` it is left out.

    :raises ArtifactError: if no golden vector would be left.
    """
    base = model.artifact.manifest
    origin = _SUFFIX.sub("", base.version)
    table = {RELATED_TOKEN: model.table.tokens, RELATED_WEIGHT: model.table.weights}
    digest = hashlib.sha256(b"".join(np.ascontiguousarray(array).tobytes() for array in table.values())).hexdigest()
    counts = {
        "added": sum(weight > 0 for weight in model.by_hand.values()),
        "removed": sum(weight == 0 for weight in model.by_hand.values()),
    }
    description = replace(
        base,
        version=f"{origin}-related-{digest[:8]}",
        evaluation={**base.evaluation, "related_words_by_hand": {"figures_of": origin, **counts}},
    )

    def fill(directory: Path) -> None:
        for name in base.files:
            shutil.copyfile(model.artifact.path / name, directory / name)
            if name in base.weight_files:
                _patch(directory / name, table)
        (directory / RELATED_WORDS).write_text(model.by_hand_tsv(), encoding="utf-8")
        card = (directory / README).read_text(encoding="utf-8").partition(_HEADING)[0].rstrip()
        note = _NOTE.format(heading=_HEADING, version=description.version, base=origin, file=RELATED_WORDS, **counts)
        card = card.replace(f"# {base.version}\n", f"# {description.version}\n", 1)
        (directory / README).write_text(f"{card}\n{note}", encoding="utf-8")
        made = Artifact(directory, describe_files(directory, description))
        vectors = list(_golden(model, outcome.words, lambda: load(made) if load else None))
        if not any(vector.ids for vector in vectors):
            raise ArtifactError(
                "every golden text of the model holds a word whose row changes, and torch and transformers are not "
                "installed (the extra train) to encode them anew: install them, or change fewer words"
            )
        write_golden(directory / GOLDEN, vectors)

    return write_artifact(folder / description.version, fill, lambda _: description)


def _golden(model: Model, changed: set[int], load: Callable[[], Encoder | None]) -> Iterator[GoldenVector]:
    manifest = model.artifact.manifest
    encoder: Encoder | None = None
    for golden in model.artifact.golden():
        length = manifest.max_length_query if golden.input_type == "query" else manifest.max_length_document
        (text,) = model.tokenizer.encode_batch([manifest.prompted(golden.text, golden.input_type)], length)
        if changed.isdisjoint(model.tables.words(text.ids).tolist()):
            yield golden
        elif encoder := encoder or load():
            vector = encoder.vector(golden.text, golden.input_type)
            yield GoldenVector(
                golden.text, golden.input_type, tuple(vector.ids.tolist()), tuple(vector.weights.tolist())
            )


def _patch(path: Path, tensors: Mapping[str, NDArray[Any]]) -> None:
    """Overwrites those of `tensors` that the safetensors file at `path` holds, of the same shape and type."""
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        for name in tensors.keys() & header.keys():
            file.seek(8 + length + header[name]["data_offsets"][0])
            file.write(np.ascontiguousarray(tensors[name]).data)
