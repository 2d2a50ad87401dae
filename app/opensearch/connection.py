"""How commands are told of a cluster: one set of options, and what they come to."""

from __future__ import annotations

import argparse
import getpass
from dataclasses import dataclass, field
from pathlib import Path

from app.opensearch.cluster import Cluster
from app.opensearch.facts import OpenSearchError


@dataclass(frozen=True, slots=True)
class Connection:
    """What it takes to talk to a cluster, also from another process."""

    url: str
    auth: tuple[str, str] | None = field(default=None, repr=False)
    ca_file: Path | None = None
    insecure: bool = False

    def open(self) -> Cluster:
        """:raises OpenSearchError: if `ca_file` cannot be read."""
        return Cluster(self.url, auth=self.auth, ca_file=self.ca_file, insecure=self.insecure)


def add_options(parser: argparse._ActionsContainer) -> None:
    parser.add_argument("--user", help="name for basic authentication; the password is asked for")
    parser.add_argument("--password-file", type=Path, metavar="FILE", help="holds the password of --user")
    parser.add_argument("--ca-file", type=Path, metavar="FILE", help="trust these certificates (PEM)")
    parser.add_argument("--insecure", action="store_true", help="trust any certificate")


def from_options(options: argparse.Namespace, url: str) -> Connection:
    """To `url`, by what `add_options` added; asks for a password if no file holds it.

    :raises OpenSearchError: if the file of the password cannot be read.
    """
    auth = None
    if options.user:
        password = secret("--password-file", options.password_file) or getpass.getpass(f"{options.user}'s password: ")
        auth = (options.user, password)
    return Connection(url, auth, options.ca_file, options.insecure)


def secret(flag: str, file: Path | None) -> str | None:
    """:raises OpenSearchError: if it cannot be read."""
    try:
        return file.read_text(encoding="utf-8").strip() if file else None
    except OSError as error:
        raise OpenSearchError(f"{flag} cannot be read: {error}") from error
