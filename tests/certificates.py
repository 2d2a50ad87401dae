"""Certificates of an authority that nobody trusts but who is told to."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

NEW_KEY = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -noenc -days 2"


@dataclass(frozen=True)
class Pair:
    """A certificate and its private key, PEM."""

    certificate: Path
    key: Path


def make_authority(directory: Path) -> Pair:
    pair = Pair(directory / "authority.pem", directory / "authority.key")
    _request(pair, "authority")
    return pair


def issue(authority: Pair, name: str, *, directory: Path | None = None) -> Pair:
    """For a host at 127.0.0.1, or a client, called `name`; beside the authority's, if not in `directory`."""
    directory = directory or authority.certificate.parent
    pair = Pair(directory / f"{name}.pem", directory / f"{name}.key")
    signed = ["-CA", str(authority.certificate), "-CAkey", str(authority.key)]
    _request(pair, name, *signed, "-addext", "subjectAltName=IP:127.0.0.1", "-addext", "basicConstraints=CA:FALSE")
    return pair


def _request(pair: Pair, name: str, *options: str) -> None:
    files = ["-keyout", str(pair.key), "-out", str(pair.certificate)]
    command = ["openssl", "req", "-x509", *NEW_KEY.split(), "-subj", f"/CN={name}", *options, *files]
    subprocess.run(command, capture_output=True, check=True)
