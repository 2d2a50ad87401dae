"""Names on the hub, against a hub on this machine: what is downloaded, with which revision and token, and offline."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from sparse_encoder.artifact import read_artifact
from sparse_encoder.checkpoint.directory import SourceError
from sparse_encoder.checkpoint.locate import locate
from tests import foreign
from tests.app.server import ROOT, running, start
from tests.sparse_encoder import hub as hubs
from tests.sparse_encoder.hub import TOKEN, Hub

pytestmark = pytest.mark.slow

LOCATE = """
import sys
from sparse_encoder.checkpoint.directory import SourceError
from sparse_encoder.checkpoint.locate import locate
try:
    found = locate(sys.argv[1])
    print(found.path, found.name, found.revision)
except SourceError as error:
    sys.exit(str(error))
"""


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory, tiny_artifact: Path) -> Iterator[Hub]:
    folder = tmp_path_factory.mktemp("hub")
    for name in ("shared", "private"):
        model = foreign.v1_wrapper(folder / "someone" / name)
        (model / "modeling_splade.py").write_text("raise SystemExit('run')", encoding="utf-8")
        (model / "pytorch_model.bin").write_bytes(b"\x80\x04")
        (model / "events.onnx").write_bytes(bytes(1000))
    pickled = folder / "someone" / "pickled"
    pickled.mkdir()
    (pickled / "config.json").write_text("{}", encoding="utf-8")
    (pickled / "weights.pt").write_bytes(b"\x80\x04")
    foreign.bge_m3(folder / "someone" / "bge")
    shutil.copytree(tiny_artifact, folder / "someone" / "ours")
    shutil.copytree(tiny_artifact, folder / "someone" / "several" / "sparse" / "ours")
    foreign.distilbert(folder / "someone" / "several" / "documents")
    foreign.small(folder / "someone" / "several" / "queries")
    (folder / "someone" / "several" / "queries" / "optimizer.pt").write_bytes(b"\x80\x04")
    with hubs.running(folder) as hub:
        hub.private.add("someone/private")
        yield hub


def environment(hub: Hub, home: Path, **more: str) -> dict[str, str]:
    return {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1", **more}


def located(name: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "-c", LOCATE, name]
    return subprocess.run(
        command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )


def test_weights_and_texts_are_downloaded_once_and_nothing_that_could_run(hub: Hub, tmp_path: Path) -> None:
    hub.downloaded.clear()
    first = located("someone/shared", environment(hub, tmp_path))
    assert (first.returncode, first.stderr) == (0, "")
    path, name, revision = first.stdout.split()
    assert (name, revision) == ("someone/shared", hub.commit("someone/shared"))
    assert {file.name for file in Path(path).iterdir()} == {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert len(hub.downloaded) == 4
    assert located("someone/shared@v1", environment(hub, tmp_path)).stdout == first.stdout
    assert len(hub.downloaded) == 4
    # With the hub away, or told to ask nobody, the cache answers.
    for offline in ({"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}):
        assert located("someone/shared", environment(hub, tmp_path, **offline)).stdout == first.stdout


def test_files_of_torch_are_downloaded_where_there_is_nothing_else(hub: Hub, tmp_path: Path) -> None:
    found = located("someone/bge", environment(hub, tmp_path))
    assert (found.returncode, found.stderr) == (0, "")
    names = {file.name for file in Path(found.stdout.split()[0]).iterdir()}
    assert {"pytorch_model.bin", "sparse_linear.pt"} < names
    assert "colbert_linear.pt" not in names


def test_a_folder_of_a_repository_is_a_checkpoint_of_its_own(hub: Hub, tmp_path: Path) -> None:
    hub.downloaded.clear()
    found = located("someone/several/queries@v1", environment(hub, tmp_path))
    assert (found.returncode, found.stderr) == (0, "")
    path, name, revision = found.stdout.split()
    assert (Path(path).name, name, revision) == ("queries", "someone/several/queries", hub.commit("someone/several"))
    assert {Path(file).parent.as_posix() for file in hub.downloaded} == {"someone/several/queries"}
    assert {file.name for file in Path(path).iterdir()} == {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    again = located("someone/several/queries@v1", environment(hub, tmp_path, HF_HUB_OFFLINE="1"))
    assert again.stdout == found.stdout


def test_a_private_checkpoint_takes_a_token(hub: Hub, tmp_path: Path) -> None:
    refused = located("someone/private", environment(hub, tmp_path))
    assert refused.returncode == 1
    assert "cannot be had from the hub (RepositoryNotFoundError" in refused.stderr
    assert "that HF_TOKEN may read it" in refused.stderr
    assert located("someone/private", environment(hub, tmp_path, HF_TOKEN=TOKEN)).returncode == 0


@pytest.mark.parametrize(
    ("name", "more", "message"),
    [
        (
            "someone/pickled",
            {},
            "weights.pt only, a pickle, which can run any code when it is read: it is",
        ),
        ("someone/several/absent", {}, "someone/several has no folder absent with a checkpoint in it"),
        ("someone/several/../ours", {}, "is no directory and no name on the hub"),
        ("someone/absent", {}, "someone/absent cannot be had from the hub (RepositoryNotFoundError"),
        ("someone/shared@v9", {}, "someone/shared cannot be had from the hub (RevisionNotFoundError"),
        ("someone/shared", {"HF_HUB_OFFLINE": "1"}, "that it was downloaded before if HF_HUB_OFFLINE is set"),
    ],
)
def test_what_cannot_be_had_says_why(hub: Hub, tmp_path: Path, name: str, more: dict[str, str], message: str) -> None:
    hub.downloaded.clear()
    done = located(name, environment(hub, tmp_path, **more))
    assert done.returncode == 1
    assert message in done.stderr
    assert hub.downloaded == []


def test_a_full_disk_is_found_before_the_download(hub: Hub, tmp_path: Path) -> None:
    script = (
        "import collections, shutil\nshutil.disk_usage = lambda path: collections.namedtuple('Usage', 'free')(10)\n"
    )
    command = [sys.executable, "-c", script + LOCATE, "someone/shared"]
    hub.downloaded.clear()
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, **environment(hub, tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "has 0 MB: free some, or set HF_HOME" in done.stderr
    assert hub.downloaded == []


def test_without_the_package_the_message_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(SourceError, match=r"install the extra hub \(pip install '\.\[hub\]'\), or download"):
        locate("someone/shared")


def test_the_service_starts_from_a_name_and_refuses_one_that_is_none(hub: Hub, tmp_path: Path) -> None:
    names = environment(hub, tmp_path / "hf")
    command = ("-m", "app", "--port", "0", "--precision", "f32", "--encoder-threads", "1")
    with running(*command, "--cache-dir", str(tmp_path), "--model", "someone/shared@v1", **names) as server:
        server.terminate()
        assert server.wait() == 0
        assert any("converting someone/shared@v1" in str(entry["message"]) for entry in server.entries())
    refused = start(*command, "--cache-dir", str(tmp_path), "--model", "someone/pickled", **names)
    assert refused.wait() != 0
    assert any("someone/pickled has its weights in weights.pt only" in line for line in refused.log)


def test_two_folders_of_a_repository_are_served_as_a_pair(hub: Hub, tmp_path: Path) -> None:
    names = environment(hub, tmp_path / "hf")
    options = ("--cache-dir", str(tmp_path), "--precision", "f32", "--encoder-threads", "1")
    pair = ("--model", "someone/several/documents", "--query-model", "someone/several/queries")
    with running("-m", "app", "--port", "0", *options, *pair, **names) as server:
        model = httpx.get(f"{server.url}/info", timeout=None).json()["model"]
    assert model["query_encoder"]["architecture"] == "BertForMaskedLM"
    assert model["version"].startswith("someone-several-documents-")


@pytest.mark.parametrize("name", ["someone/ours", "someone/several/sparse/ours"])
def test_an_artifact_of_ours_is_served_from_the_hub_as_it_is(
    name: str, hub: Hub, tiny_artifact: Path, tmp_path: Path
) -> None:
    names = environment(hub, tmp_path / "hf")
    command = ("-m", "app", "--port", "0", "--precision", "f32", "--encoder-threads", "1", "--model", name)
    with running(*command, "--cache-dir", str(tmp_path / "cache"), **names) as server:
        server.terminate()
        assert server.wait() == 0
    (copy,) = (tmp_path / "cache" / "hub").iterdir()
    assert read_artifact(copy).manifest == read_artifact(tiny_artifact).manifest
