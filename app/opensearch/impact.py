"""What a set-up means for indices that exist: what is added to them, and what cannot be. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from app.opensearch.plan import META

INGEST = "index.default_pipeline"
SEARCH = "index.search.default_pipeline"
VECTOR_TYPES = ("rank_features", "sparse_vector", "nested")


@dataclass(frozen=True, slots=True)
class Index:
    """An index that exists."""

    name: str
    settings: Mapping[str, Any]  #: flat names; those that somebody set
    fields: Mapping[str, Mapping[str, Any]]  #: mapping of each field, by its whole name; nested fields as they are
    meta: Mapping[str, Any]  #: `_meta` of its mapping
    aliases: frozenset[str] = frozenset()

    def uses(self, pipeline: str) -> bool:
        """Whether its documents or its searches go through `pipeline`."""
        return pipeline in (self.settings.get(INGEST), self.settings.get(SEARCH))

    @property
    def model_version(self) -> str | None:
        """That its vectors were made by; None if nobody wrote it down."""
        made = self.meta.get(META)
        return made.get("model_version") if isinstance(made, Mapping) else None

    @property
    def encoded(self) -> list[str]:
        """Names of the fields that have a vector beside them."""
        return sorted(name for name in self.fields if self.fields.get(f"{name}_sparse", {}).get("type") in VECTOR_TYPES)


@dataclass(frozen=True, slots=True)
class Impact:
    """Of a set-up, on one index."""

    fields: Mapping[str, Mapping[str, Any]]  #: to be added to its mapping, whole names
    obstacles: Sequence[str]  #: what it has, and cannot be changed


def flat(properties: Mapping[str, Any], prefix: str = "") -> dict[str, Mapping[str, Any]]:
    """The fields of a mapping by their whole names."""
    fields: dict[str, Mapping[str, Any]] = {}
    for name, mapping in properties.items():
        if mapping.get("type", "object") == "object":
            fields |= flat(mapping.get("properties", {}), f"{prefix}{name}.")
        else:
            fields[f"{prefix}{name}"] = mapping
    return fields


def impact(index: Index, fields: Mapping[str, Mapping[str, Any]], settings: Mapping[str, str]) -> Impact:
    """On `index`, of a set-up whose indices have the mappings `fields` and `settings` (flat names)."""
    obstacles = []
    for name, mapping in fields.items():
        wanted = _vector_type(mapping)
        if any(other.startswith(f"{name}.") for other in index.fields):
            obstacles.append(f"{name} is an object, and shall be a field")
        elif name in index.fields and wanted and _vector_type(index.fields[name]) != wanted:
            obstacles.append(f"{name} is {_type(index.fields[name])}, and shall be {_type(mapping)}")
    if dropped := [name for name in index.encoded if name not in fields]:
        obstacles.append(f"{', '.join(dropped)} would be encoded no longer: name what is encoded now in --field, too")
    if settings.get("index.sparse") and str(index.settings.get("index.sparse")).lower() != "true":
        obstacles.append("it has not the setting index.sparse, which only a new index gets")
    return Impact(
        {name: mapping for name, mapping in fields.items() if name not in index.fields},
        obstacles,
    )


def _vector_type(mapping: Mapping[str, Any]) -> str | None:
    """None of a field that holds no vector."""
    kind = _type(mapping)
    return kind if kind.split()[0] in VECTOR_TYPES else None


def _type(mapping: Mapping[str, Any]) -> str:
    inner = mapping.get("properties", {}).get("sparse_encoding", {}).get("type")
    return f"{mapping['type']}" + (f" of {inner}" if inner else "")


def matches(pattern: str, name: str) -> bool:
    """Whether an index template with the `pattern` is for an index called `name`."""
    return re.fullmatch(".*".join(map(re.escape, pattern.split("*"))), name) is not None


def sample_name(pattern: str) -> str:
    """A name that an index of the `pattern` may have."""
    return pattern.replace("*", "sample")


def next_name(owner: str) -> str:
    """Of a set-up that takes the place of `owner`."""
    stem, _, number = owner.rpartition("-")
    return f"{stem}-{int(number) + 1}" if stem and number.isdecimal() else f"{owner}-2"


def way_out(owner: str, index: Index) -> list[str]:
    """The commands that make a new index of `index` and go over to it, with a set-up of its own."""
    new = next_name(owner)
    end = index.name.removeprefix(f"{owner}-") if index.name.startswith(f"{owner}-") else index.name
    alias = min(index.aliases, default="ALIAS")
    return [
        f"python -m app.opensearch setup --name {new} (and the options that you gave)",
        f"python -m app.opensearch reindex --name {new} {index.name} {new}-{end} --alias {alias}",
    ]
