"""What the tests of the store share: small artifacts, an S3 server, and what must hold for every store at any time."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from s3fs import S3FileSystem

from sparse_encoder.artifact import Description, GoldenVector, TrainingOrigin, write_artifact, write_golden
from sparse_encoder.store import Store

LISTENING = re.compile(r"Running on (http://127\.0\.0\.1:\d+)")
BUCKET = "models"


def make_artifact(target: Path, version: str, content: str = "", weights_bytes: int = 20_000) -> Path:
    """An artifact of small plain files; those of the same `version` and `content` are equal."""

    def fill(directory: Path) -> None:
        for name in ("README.md", "config.json", "tokenizer.json"):
            (directory / name).write_text(f"{name} of {version} {content}")
        (directory / "model.safetensors").write_bytes(content.encode() + bytes(weights_bytes))
        write_golden(directory / "golden.jsonl", [GoldenVector("손해배상", "query", (7, 2), (1.5, 0.25))])

    description = Description(
        version=version,
        architecture="BertForMaskedLM",
        activation="log1p_relu",
        max_length_document=256,
        max_length_query=64,
        vocabulary_size=10,
        never_emitted_ids=(0,),
        golden_tolerance=1e-3,
        evaluation={},
        training=TrainingOrigin(commit="abc", command="train", base="none", data_origin=("없음",)),
    )
    return write_artifact(target, fill, lambda _: description)


def check(url: str, cache_dir: Path, expected: set[str]) -> None:
    """Nothing but the versions `expected` is listed or named, and every byte of them is there."""
    store = Store(url)
    assert set(store.versions()) == expected
    for version in store.versions():
        assert store.fetch(store.resolve(version), cache_dir).manifest.version == version
    assert {alias.version for alias in store.aliases().values()} <= expected


@contextmanager
def s3_server() -> Iterator[str]:
    """An S3 server as a process of its own, with an empty bucket; gives its address."""
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        try:
            log = []
            for line in process.stderr:
                log.append(line)
                if found := LISTENING.search(line):
                    break
            else:
                raise AssertionError("".join(log))
            threading.Thread(target=process.stderr.read, daemon=True).start()  # so that its log never blocks it
            request = urllib.request.Request(f"{found[1]}/{BUCKET}", method="PUT")
            urllib.request.urlopen(request).close()
            S3FileSystem.clear_instance_cache()  # fsspec remembers connections by everything but the address
            yield found[1]
        finally:
            S3FileSystem.clear_instance_cache()
            process.kill()


@contextmanager
def s3_bucket() -> Iterator[str]:
    """URL of an empty bucket of a server of its own, which the environment names to every process."""
    with s3_server() as address, pytest.MonkeyPatch.context() as patch:
        for name, value in s3_environment(address).items():
            patch.setenv(name, value)
        yield f"s3://{BUCKET}"


def s3_environment(address: str) -> dict[str, str]:
    return {
        "AWS_ENDPOINT_URL": address,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    }
