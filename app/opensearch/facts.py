"""What is known of a cluster, and the one error of this package. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Version = tuple[int, int, int]
SECURITY = "opensearch-security"  #: name of the plugin


class OpenSearchError(Exception):
    """The cluster could not do it, or must not. The message says what was wrong, and what to do."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What decides how a cluster is set up."""

    version: Version
    plugins: frozenset[str]  #: those that every node has
    has_ml_node: bool
    settings: Mapping[str, Any]  #: in force, flat names, defaults included
    persistent: Mapping[str, Any]  #: those that somebody set

    def is_on(self, setting: str) -> bool:
        """Whether a `setting` that needs the security plugin is in force."""
        return SECURITY in self.plugins and str(self.settings.get(setting)).lower() == "true"


def parse_version(number: str) -> Version:
    """`3.6.0-SNAPSHOT` as (3, 6, 0).

    :raises OpenSearchError: if `number` is no version.
    """
    found = re.match(r"(\d+)\.(\d+)\.(\d+)", number)
    if not found:
        raise OpenSearchError(f"OpenSearch says that its version is {number!r}, which is none: what answers there?")
    major, minor, patch = map(int, found.groups())
    return major, minor, patch
