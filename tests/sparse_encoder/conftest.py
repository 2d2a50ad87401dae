from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.sparse_encoder.stores import BUCKET, s3_environment, s3_server


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """URL of an empty bucket of a running S3 server, which the environment names to every process."""
    with s3_server() as address, pytest.MonkeyPatch.context() as patch:
        for name, value in s3_environment(address).items():
            patch.setenv(name, value)
        yield f"s3://{BUCKET}"


@pytest.fixture(params=["local", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """URL of an empty store."""
    if request.param == "local":
        return str(tmp_path / "store")
    return f"{request.getfixturevalue('s3')}/{uuid.uuid4().hex}"
