"""What OpenSearch does with the exported tokenizer, done here with the same library: decode each id alone."""

from __future__ import annotations

import functools
import itertools
import json
import shutil
import unicodedata
from pathlib import Path
from zipfile import ZipFile

import pytest
import tokenizers

from app.opensearch.tokenizer_export import write_sparse_tokenizer
from sparse_encoder.artifact import Artifact, ArtifactError, TrainingOrigin, read_artifact, write_artifact
from sparse_encoder.artifact import Description as Described
from sparse_encoder.query_tokens import QUERY_TOKENS, QueryTokens
from sparse_encoder.tokenizer import Tokenizer
from tests.tiny import SENTENCES

PIECES = ["손해", "배상을", "당뇨병의", "치료가", "임대차", "계약에서", "OpenSearch", "2024년", "쁎", "3.5", "(", "을"]
QUERIES = [" ".join(words) for words in itertools.permutations(PIECES, 3)] + SENTENCES


@functools.cache
def read(archive: Path) -> tuple[tokenizers.Tokenizer, dict[str, float]]:
    with ZipFile(archive) as content:
        assert content.namelist() == ["tokenizer.json", "idf.json"]
        tokenizer = tokenizers.Tokenizer.from_str(content.read("tokenizer.json").decode())
        return tokenizer, json.loads(content.read("idf.json"))


def as_opensearch(archive: Path, query: str) -> dict[str, float]:
    tokenizer, weights = read(archive)
    ids = set(tokenizer.encode(query).ids)
    names = [name for id_ in ids if (name := tokenizer.decode([id_], skip_special_tokens=True))]
    assert len(set(names)) == len(names), "OpenSearch before 3.3 refuses a name that comes twice"
    return {name: weights.get(name, 1.0) for name in names}


def test_opensearch_gets_the_vectors_of_the_service(tiny_artifact: Path, tmp_path: Path) -> None:
    archive = write_sparse_tokenizer(read_artifact(tiny_artifact), tmp_path / "queries.zip")
    tokenizer = Tokenizer.from_file(tiny_artifact / "tokenizer.json")
    tokens = QueryTokens.read(tiny_artifact, len(tokenizer.vocabulary))
    assert tokens is not None
    empty = 0
    for query, text in zip(QUERIES, tokenizer.encode_batch(QUERIES, 512), strict=True):
        found = as_opensearch(archive, query)
        expected = tokens.vector(text.ids).to_words(tokenizer.vocabulary)
        assert found == pytest.approx(expected, rel=1e-4)
        empty += not found
    assert empty < 10


def test_an_id_that_the_vocabulary_leaves_out_changes_no_other(tiny_artifact: Path, tmp_path: Path) -> None:
    whole = as_opensearch(write_sparse_tokenizer(read_artifact(tiny_artifact), tmp_path / "whole.zip"), "손해 배상")
    path = tmp_path / "artifact"
    shutil.copytree(tiny_artifact, path)
    document = json.loads((path / "tokenizer.json").read_text(encoding="utf-8"))
    ids = document["model"]["vocab"]
    del ids[next(token for token, id_ in ids.items() if 10 < id_ < min(ids[name] for name in whole))]
    (path / "tokenizer.json").write_text(json.dumps(document), encoding="utf-8")
    artifact = Artifact(path, read_artifact(tiny_artifact).manifest)
    assert as_opensearch(write_sparse_tokenizer(artifact, tmp_path / "queries.zip"), "손해 배상") == whole


def test_a_repeated_word_and_decomposed_hangul_change_nothing(tiny_artifact: Path, tmp_path: Path) -> None:
    archive = write_sparse_tokenizer(read_artifact(tiny_artifact), tmp_path / "queries.zip")
    once = as_opensearch(archive, "손해 배상")
    assert len(once) >= 2
    assert as_opensearch(archive, "손해 배상 손해") == once
    assert as_opensearch(archive, unicodedata.normalize("NFD", "손해 배상")) == once


def test_a_long_query_is_cut_where_the_service_cuts_it(tiny_artifact: Path, tmp_path: Path) -> None:
    archive = write_sparse_tokenizer(read_artifact(tiny_artifact), tmp_path / "queries.zip")
    tokenizer = Tokenizer.from_file(tiny_artifact / "tokenizer.json")
    tokens = QueryTokens.read(tiny_artifact, len(tokenizer.vocabulary))
    assert tokens is not None
    long = [" ".join(SENTENCES[start:]) for start in range(20)]
    cut = tokenizer.encode_batch(long, read_artifact(tiny_artifact).manifest.max_length_query)
    for query, text in zip(long, cut, strict=True):
        assert text.truncated
        assert as_opensearch(archive, query).keys() == tokens.vector(text.ids).to_words(tokenizer.vocabulary).keys()


def test_an_artifact_without_query_weights_is_refused(tiny_artifact: Path, tmp_path: Path) -> None:
    manifest = read_artifact(tiny_artifact).manifest

    def fill(directory: Path) -> None:
        for name in manifest.files:
            if name != QUERY_TOKENS:
                shutil.copyfile(tiny_artifact / name, directory / name)

    described = {name: getattr(manifest, name) for name in Described.__dataclass_fields__}
    assert isinstance(described["training"], TrainingOrigin)
    without = write_artifact(tmp_path / "without", fill, lambda _: Described(**described))
    with pytest.raises(ArtifactError, match=r"tiny-v1 has no query_tokens\.json"):
        write_sparse_tokenizer(read_artifact(without), tmp_path / "queries.zip")
    assert list(tmp_path.glob("*.zip")) == []
