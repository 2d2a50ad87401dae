"""`python -m sparse_encoder related`: a user's own related words, through to the vectors that are served."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from app.encoders.openvino_encoder import OpenVINOEncoder
from app.models.loaded import LoadedModel, check_golden, load_model
from sparse_encoder.__main__ import main
from sparse_encoder.artifact import Artifact, read_artifact
from sparse_encoder.packed import pack
from sparse_encoder.related import commands
from sparse_encoder.related.revise import RELATED_WORDS, Model
from sparse_encoder.store import Store

HEAVIEST = 12


def related(*arguments: object) -> int:
    return main(["related", *map(str, arguments)])


def served(artifact: Artifact) -> LoadedModel:
    """As the service loads it: it must reproduce its golden vectors."""
    model = load_model(artifact, lambda made: OpenVINOEncoder(made, "f32", threads=1))
    check_golden(model)
    return model


def heaviest(model: LoadedModel, text: str) -> list[str]:
    vector = model.vector(text, "query")
    return [model.tokenizer.vocabulary[token] for token in vector.ids[:HEAVIEST].tolist()]


def only(folder: Path) -> Artifact:
    (path,) = folder.iterdir()
    return read_artifact(path)


def rows(model: Model, word: str) -> dict[str, float]:
    return {model.name(token): weight for token, weight in model.table.row(model.words.find(word)).items()}


def words_of(artifact: Path) -> list[str]:
    """Those that a user can relate."""
    model = Model(read_artifact(artifact))
    own = model.tables.own_token
    return [model.name(token) for token in range(len(own)) if own[token] == token and len(model.name(token)) > 1]


def test_added_words_are_among_the_heaviest_of_each_other(lexical_artifact: Path, tmp_path: Path) -> None:
    words = [word for word in words_of(lexical_artifact) if not word.startswith("##")]
    chosen = np.random.default_rng(4).permutation(words)[:80].tolist()
    pairs = list(zip(chosen[::2], chosen[1::2], strict=True))
    tsv = tmp_path / "mine.tsv"
    tsv.write_text("".join(f"{word}\t{other}\n" for word, other in pairs), encoding="utf-8")
    before = served(read_artifact(lexical_artifact))
    assert related("add", lexical_artifact, "--tsv", tsv, "--out", tmp_path / "out") == 0
    after = served(only(tmp_path / "out"))
    sides = [side for word, other in pairs for side in ((word, other), (other, word))]
    assert all(other in heaviest(after, word) for word, other in sides)
    assert sum(other in heaviest(before, word) for word, other in sides) < len(sides) / 4
    assert after.manifest.vocabulary_sha256 == before.manifest.vocabulary_sha256


def test_the_version_says_what_it_is(lexical_artifact: Path, tmp_path: Path) -> None:
    assert related("add", lexical_artifact, "치료", "운동", "--out", tmp_path / "out") == 0
    first = only(tmp_path / "out")
    assert first.manifest.version.startswith("lexical-v1-related-")
    told = first.manifest.evaluation["related_words_by_hand"]
    assert told == {"figures_of": "lexical-v1", "added": 2, "removed": 0}
    assert related("remove", first.path, "치료", "운동", "--out", tmp_path / "again") == 0
    second = only(tmp_path / "again")
    assert second.manifest.version.startswith("lexical-v1-related-")
    assert second.manifest.version != first.manifest.version
    card = (second.path / "README.md").read_text(encoding="utf-8")
    assert card.count("## Related words by hand") == 1
    assert f"{second.manifest.version} is lexical-v1 with 0 relations between words added and 2 removed" in card


def test_what_was_changed_is_listed_and_can_be_made_again(
    lexical_artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert related("add", lexical_artifact, "치료", "운동", "2.5", "--out", tmp_path / "one") == 0
    assert related("remove", only(tmp_path / "one").path, "운동", "치료", "--one-way", "--out", tmp_path / "two") == 0
    changed = only(tmp_path / "two")
    capsys.readouterr()
    assert related("list", changed.path) == 0
    listed = capsys.readouterr().out
    assert listed.splitlines() == ["운동\t치료\t0", "치료\t운동\t2.5"]
    (tmp_path / "mine.tsv").write_text("치료\t운동\t2.5\n", encoding="utf-8")
    again = ("--tsv", tmp_path / "mine.tsv", "--one-way", "--out", tmp_path / "three")
    assert related("add", lexical_artifact, *again) == 0
    capsys.readouterr()
    assert related("show", only(tmp_path / "three").path, "치료") == 0
    assert "치료\t운동\t2.5 *" in capsys.readouterr().out.splitlines()


def test_removed_words_are_related_no_longer(lexical_artifact: Path, tmp_path: Path) -> None:
    model = Model(read_artifact(lexical_artifact))
    word = next(word for word in words_of(lexical_artifact) if not word.startswith("##") and rows(model, word))
    other = next(iter(rows(model, word)))
    assert related("remove", lexical_artifact, word, other, "--out", tmp_path / "out") == 0
    after = rows(Model(only(tmp_path / "out")), word)
    assert after == {name: weight for name, weight in rows(model, word).items() if name != other}


def test_every_refused_row_is_said_with_its_reason_and_the_others_are_made(
    lexical_artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tsv = tmp_path / "mine.tsv"
    tsv.write_text("치료\t운동\n치료법들\t운동\n!\t운동\n치료\t치료\n \t \n운동\t식사\t0\n", encoding="utf-8")
    assert related("add", lexical_artifact, "--tsv", tsv, "--out", tmp_path / "out") == 0
    said = capsys.readouterr()
    refused = [line for line in said.err.splitlines() if line.startswith("refused: ")]
    assert [line.partition(": ")[2].partition(":")[0] for line in refused] == [
        "치료법들 ↔ 운동",
        "! ↔ 운동",
        "치료 ↔ 치료",
        "운동 ↔ 식사",
    ]
    assert "the vocabulary does not have 치료법들 whole, it is cut into 치료 + ##법 + ##들: relate one of" in refused[0]
    assert "! is never emitted" in refused[1]
    assert "both are one word" in refused[2]
    assert "does not relate them" in refused[3]
    assert said.out.splitlines()[-1].endswith(": 2 rows changed, 4 refused")


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["치료법들", "운동", "--out", "out"], "nothing was changed"),
        (["치료", "운동"], "say where the new version shall go"),
        (["치료", "--out", "out"], "give a word and a related one, or --tsv FILE"),
        (["치료", "운동", "--out", "out", "--alias", "stable"], "an alias is one of a store"),
        (["--tsv", "gone.tsv", "--out", "out"], "gone.tsv cannot be read"),
        (["--tsv", "bad.tsv", "--out", "out"], "bad.tsv line 2 is not a word, a related word and perhaps a weight"),
    ],
)
def test_what_cannot_be_done_is_said_and_leaves_nothing(
    lexical_artifact: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    reason: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bad.tsv").write_text("치료\t운동\n치료\t운동\t-1\n", encoding="utf-8")
    assert related("add", lexical_artifact, *arguments) == 1
    assert reason in capsys.readouterr().err
    assert not Path("out").exists()


def test_a_model_without_a_table_is_refused(
    tiny_artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert related("add", tiny_artifact, "치료", "운동", "--out", tmp_path / "out") == 1
    assert "has no table of related words" in capsys.readouterr().err


def test_a_full_row_makes_room_for_what_is_added_by_hand_and_keeps_that(
    lexical_artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [word for word in words_of(lexical_artifact) if not word.startswith("##") and word != "치료"]
    model = Model(read_artifact(lexical_artifact))
    room = model.table.tokens.shape[1]
    fresh = [word for word in words if word not in rows(model, "치료")][: room + 1]
    (tmp_path / "all.tsv").write_text("".join(f"치료\t{word}\n" for word in fresh), encoding="utf-8")
    arguments = ("--tsv", tmp_path / "all.tsv", "--one-way", "--out", tmp_path / "out")
    assert related("add", lexical_artifact, *arguments) == 0
    said = capsys.readouterr()
    assert set(rows(Model(only(tmp_path / "out")), "치료")) == set(fresh[:room])
    assert said.out.count(", in place of ") == len(rows(model, "치료"))
    weakest = min(rows(model, "치료"), key=lambda name: rows(model, "치료")[name])
    assert f"in place of {weakest}, the weakest of its row" in next(
        line for line in said.out.splitlines() if "in place" in line
    )
    assert f"refused: 치료 → {fresh[room]}: one of them has {room} relations already, all added by hand" in said.err


def test_an_alias_of_a_store_moves_on_from_the_version_that_was_changed(
    lexical_artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store(str(tmp_path / "store"))
    first = store.publish(lexical_artifact, aliases=["stable"], by="test")
    to_store = ("--store", store.url, "--alias", "stable", "--note", "for the shop")
    assert related("add", "stable", "치료", "운동", *to_store) == 0
    second = store.resolve("stable")
    assert second != first
    assert store.aliases()["stable"].note == "for the shop"
    assert rows(Model(store.fetch(second, tmp_path)), "치료")["운동"] > 0
    assert related("add", first, "치료", "식사", *to_store) == 1
    assert f"stable stands for {second}, the change is to {first}" in capsys.readouterr().err
    assert store.versions() == [first, second]
    assert store.resolve("stable") == second
    assert related("add", "stable", "치료", "식사", *to_store) == 0
    assert {"운동", "식사"} <= rows(Model(store.fetch(store.resolve("stable"), tmp_path)), "치료").keys()


def test_golden_vectors_of_other_texts_stay_and_the_rest_is_computed_or_left_out(
    lexical_artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    base = read_artifact(lexical_artifact)
    before = {(golden.text, golden.input_type): golden for golden in base.golden()}
    touched = {key for key in before if "당뇨병" in key[0]}
    assert 0 < len(touched) < len(before)
    assert related("add", lexical_artifact, "당뇨병", "운동", "--one-way", "--out", tmp_path / "torch") == 0
    after = {(golden.text, golden.input_type): golden for golden in only(tmp_path / "torch").golden()}
    assert after.keys() == before.keys()
    assert {key for key in before if after[key] != before[key]} == touched
    monkeypatch.setattr(commands, "_reference", lambda: None)  # as where torch is not installed
    assert related("add", lexical_artifact, "당뇨병", "운동", "--one-way", "--out", tmp_path / "plain") == 0
    without = only(tmp_path / "plain")
    assert {(golden.text, golden.input_type): golden for golden in without.golden()} == {
        key: golden for key, golden in before.items() if key not in touched
    }
    served(without)
    every = "".join(f"{word}\t운동\n" for word in words_of(lexical_artifact) if word != "운동")
    (tmp_path / "every.tsv").write_text(every, encoding="utf-8")
    arguments = ("--tsv", tmp_path / "every.tsv", "--one-way", "--out", tmp_path / "none")
    assert related("add", lexical_artifact, *arguments) == 1
    assert "every golden text of the model holds a word whose row changes" in capsys.readouterr().err
    assert not list((tmp_path / "none").glob("*"))


def test_a_packed_model_is_changed_as_well(lexical_artifact: Path, tmp_path: Path) -> None:
    packed = pack(lexical_artifact, tmp_path / "packed")
    assert related("add", packed, "치료", "운동", "--out", tmp_path / "out") == 0
    assert (only(tmp_path / "out").path / RELATED_WORDS).is_file()
