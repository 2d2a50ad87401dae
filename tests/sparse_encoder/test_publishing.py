"""A model that exists comes into a store by one command, if its gates let it."""

from __future__ import annotations

from pathlib import Path

import pytest

from sparse_encoder.__main__ import main
from sparse_encoder.artifact import read_artifact
from sparse_encoder.packed import pack
from sparse_encoder.store import Store
from tests.app.broken import copy
from tests.tiny import publish as make


def run(store: Path, *arguments: object) -> int:
    return main(["store", str(store), "publish", *map(str, arguments)])


def test_the_embedded_model_is_published_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path / "new" / "store", "embedded", "--alias", "stable", "--note", "the first") == 0
    store = Store(str(tmp_path / "new" / "store"))
    (version,) = store.versions()
    assert capsys.readouterr().out == f"stable -> {version}\n"
    assert (store.aliases()["stable"].version, store.aliases()["stable"].note) == (version, "the first")
    store.fetch(version, tmp_path)  # checks every byte
    assert run(tmp_path / "new" / "store", "embedded", "--alias", "stable") == 0  # changes nothing


def test_a_directory_is_published_packed_or_not(tiny_artifact: Path, tmp_path: Path) -> None:
    assert run(tmp_path / "store", tiny_artifact) == 0
    assert Store(str(tmp_path / "store")).aliases() == {}
    packed = pack(copy(tiny_artifact, tmp_path / "other", "other"), tmp_path / "packed")
    assert run(tmp_path / "store", packed, "--alias", "stable", "--alias", "next") == 0
    store = Store(str(tmp_path / "store"))
    assert {name: alias.version for name, alias in store.aliases().items()} == {"stable": "other", "next": "other"}
    assert store.fetch("other", tmp_path).manifest.files == read_artifact(tmp_path / "other").manifest.files


def test_what_fails_a_gate_is_not_published_unless_it_is_meant(
    tiny_artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def other_words(directory: Path) -> None:
        text = (directory / "tokenizer.json").read_text(encoding="utf-8")
        (directory / "tokenizer.json").write_text(text.replace('"##q"', '"##새말"'), encoding="utf-8")

    root = tmp_path / "store"
    assert run(root, tiny_artifact, "--alias", "stable") == 0
    refused = {
        copy(
            tiny_artifact, tmp_path / "words", "words", other_words
        ): "its tokenizer or token ids are not those of tiny",
        make(tmp_path / "worse", "worse", seed=7): "of the 10 heaviest tokens of the golden texts of tiny-v1 are among",
        make(tmp_path / "mute", "mute", bias_shift=-50.0): "active tokens on average, outside of 2 to 2000",
    }
    for artifact, reason in refused.items():
        capsys.readouterr()
        assert run(root, artifact, "--alias", "stable") == 1
        assert reason in capsys.readouterr().err
    assert Store(str(root)).versions() == ["tiny-v1"]
    worse = tmp_path / "worse"
    assert run(root, worse, "--alias", "stable", "--force") == 1
    assert "--force needs --note" in capsys.readouterr().err
    assert run(root, worse, "--alias", "other") == 0  # an alias that stands for nothing has nothing to compare
    assert run(root, worse, "--alias", "stable", "--force", "--note", "better on law") == 0
    assert Store(str(root)).aliases()["stable"].note.startswith("better on law; failed gates: only ")


@pytest.mark.parametrize("model", ["nowhere", "."])
def test_what_is_no_artifact_is_refused_with_the_way_to_make_one(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path / "store", tmp_path / model) == 1
    assert "holds no artifact" in capsys.readouterr().err
