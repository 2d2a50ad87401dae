"""Two encoders as one version, one for documents and one for queries: read, converted, served, explained, swapped."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import SecretStr, ValidationError
from safetensors.numpy import load_file, save_file
from sentence_transformers.sparse_encoder import SparseEncoder

from app.encoders.static_int8 import static_int8_graph
from app.encoders.torch_encoder import TorchEncoder
from app.main import create_app
from app.models.conversion import open_model
from app.models.loaded import LoadedModel, ModelError, check_golden, load_model
from app.settings import Settings
from sparse_encoder.__main__ import main
from sparse_encoder.artifact import Artifact, ArtifactError, InputType, read_artifact
from sparse_encoder.checkpoint.convert import convert
from sparse_encoder.checkpoint.locate import Located
from sparse_encoder.checkpoint.reference import REFERENCE, Reference
from sparse_encoder.checkpoint.source import Choices, Source, read_pair, read_source
from sparse_encoder.packed import pack
from sparse_encoder.store import Store
from tests import foreign
from tests.app.conftest import openvino
from tests.app.models.test_conversion import serving
from tests.tiny import dense

pytestmark = pytest.mark.slow

SIDES: tuple[InputType, ...] = ("document", "query")
QUERY = {"input_type": "query", "sparse_embedding_format": "token_id", "top_k": 256}


def opened(model: Path, cache: Path, queries: Path | None = None) -> Artifact:
    return open_model(str(model), cache, Choices(), openvino, str(queries) if queries else None)


def by_sentence_transformers(source: Path, artifact: Artifact, side: InputType) -> NDArray[np.float32]:
    encoder = SparseEncoder(str(source), device="cpu")
    encode = encoder.encode_query if side == "query" else encoder.encode_document
    every = artifact.manifest.vocabulary_size  # what is kept is for the service to say
    theirs: Any = encode(foreign.TEXTS, convert_to_sparse_tensor=False, max_active_dims=every)
    rows: NDArray[np.float32] = theirs.numpy()
    rows[:, list(artifact.manifest.never_emitted_ids)] = 0
    return rows


@pytest.fixture(scope="module")
def routed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return foreign.routed_pair(tmp_path_factory.mktemp("routed") / "pair")


@pytest.fixture(scope="module")
def artifact(routed: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return opened(routed, tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def model(artifact: Artifact) -> LoadedModel:
    return load_model(artifact, openvino)


@pytest.mark.parametrize("shape", foreign.PAIRS)
def test_each_side_gives_the_vectors_of_its_own_encoder(shape: str, tmp_path: Path) -> None:
    """By the encoder that serves and by the reference, from a conversion of each."""
    source = foreign.PAIRS[shape](tmp_path / "source")
    loaded = load_model(opened(source, tmp_path / "cache"), openvino)
    check_golden(loaded)
    converted = read_artifact(convert(read_source(source, "pair"), tmp_path / "artifact", REFERENCE))
    reference = Reference(converted)
    for side in SIDES:
        expected = by_sentence_transformers(source, converted, side)
        for text, row in zip(foreign.TEXTS, expected, strict=True):
            np.testing.assert_allclose(dense(loaded.vector(text, side), len(row)), row, atol=1e-4)
            np.testing.assert_allclose(dense(reference.vector(text, side), len(row)), row, atol=1e-4)
            assert row.any()


def test_what_each_side_says_of_itself_is_kept(artifact: Artifact, model: LoadedModel) -> None:
    manifest = artifact.manifest
    assert (manifest.architecture, manifest.activation, manifest.pooling) == (
        "DistilBertForMaskedLM",
        "log1p_relu",
        "max",
    )
    queries = manifest.query_encoder
    assert queries is not None
    assert (queries.architecture, queries.activation, queries.pooling) == ("BertForMaskedLM", "log1p_log1p_relu", "sum")
    assert (manifest.max_length_document, manifest.max_length_query) == (64, 24)
    assert (manifest.prompt_document, manifest.prompt_query) == ("문서: ", "질의: ")
    parts = [artifact.part(side).manifest for side in SIDES]
    assert [(part.max_length_document, part.max_length_query) for part in parts] == [(64, 64), (24, 24)]
    assert [part.query_encoder for part in parts] == [None, None]
    assert model.encoder_of("query") is not model.encoder_of("document")
    for name in ("query.config.json", "query.model.safetensors"):
        files = {key: record for key, record in manifest.files.items() if key != name}
        with pytest.raises(ArtifactError, match=r"an artifact needs (query\.config\.json|weights in a query\.\*)"):
            type(manifest)(**{**vars(manifest), "files": files})


def test_torch_reads_each_of_them(artifact: Artifact) -> None:
    check_golden(load_model(artifact, lambda part: TorchEncoder(part, "cpu", "f32")))


def test_a_pair_cannot_be_packed(artifact: Artifact, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="holds two encoders, which cannot be packed: serve it as it is"):
        pack(artifact.path, tmp_path / "packed")


def test_golden_vectors_are_those_of_each_side(artifact: Artifact, tmp_path: Path) -> None:
    """With the weights of queries damaged, only the golden vectors of queries are wrong."""
    damaged = Path(shutil.copytree(artifact.path, tmp_path / "damaged"))
    shutil.copyfile(
        foreign.small_of_another_seed(tmp_path / "other") / "model.safetensors", damaged / "query.model.safetensors"
    )
    loaded = load_model(Artifact(damaged, artifact.manifest), openvino)
    with pytest.raises(ModelError, match=r"does not reproduce line \d+") as refused:
        check_golden(loaded)
    line = int(str(refused.value).partition("line ")[2].split()[0])
    assert loaded.golden[line - 1].input_type == "query"


def two(folder: Path) -> tuple[Path, Path]:
    return foreign.distilbert(folder / "documents"), foreign.small(folder / "queries")


async def test_two_directories_are_served_as_one_version(tmp_path: Path) -> None:
    documents, queries = two(tmp_path)
    expected = {
        "document": foreign.by_transformers(documents, 64)[1],
        "query": foreign.by_transformers(queries, 40)[1],
    }
    text = foreign.TEXTS[1]
    async with serving(str(documents), tmp_path / "cache", query_model=str(queries), max_length_query=20) as client:
        info = (await client.get("/info")).json()["model"]
        assert info["architecture"] == "DistilBertForMaskedLM"
        assert info["query_encoder"]["architecture"] == "BertForMaskedLM"
        assert (info["max_length_document"], info["max_length_query"]) == (64, 20)
        assert (info["query_encodings"], info["default_query_encoding"]) == (["model"], "model")
        both = {}
        for side in ("query", "document", "query"):  # the second query is the cache's
            body = {**QUERY, "texts": [text], "input_type": side}
            (both[side],) = (await client.post("/encode", json=body)).json()
            for token_id, weight in both[side].items():
                assert weight == pytest.approx(expected[side][int(token_id)], abs=1e-3)
        assert both["query"] != both["document"]
        await explained(client, text)


async def explained(client: httpx.AsyncClient, text: str) -> None:
    """Every word of either side comes from the encoder of that side."""
    answer = (await client.post("/explain", json={"texts": [text], "query": text})).json()
    for side, explanation in (("document", answer["texts"][0]), ("query", answer["query"])):
        (vector,) = (await client.post("/encode", json={"texts": [text], "input_type": side})).json()
        assert {word["word"]: word["weight"] for word in explanation["words"]} == vector
        assert explanation["largest_difference"] < 1e-4
    assert answer["scores"][0]["score"] > 0


async def test_a_pair_is_published_swapped_and_pinned_as_one_version(
    artifact: Artifact, routed: Path, tmp_path: Path
) -> None:
    store, held = Store(str(tmp_path / "store")), artifact.manifest.version
    shape = json.loads((routed / "query_1_SpladePooling" / "config.json").read_text(encoding="utf-8"))
    other = Path(shutil.copytree(routed, tmp_path / "other"))
    (other / "query_1_SpladePooling" / "config.json").write_text(
        json.dumps({**shape, "pooling_strategy": "max"}), encoding="utf-8"
    )
    new = opened(other, tmp_path / "cache")  # the queries alone are others
    for made in (artifact, new):
        assert main(["store", store.url, "publish", str(made.path)]) == 0
    store.set_alias("stable", held, by="test")
    settings = Settings(
        store=store.url,
        precision="f32",
        encoder_threads=1,
        log_level="error",
        admin_key=SecretStr("key"),
        poll_seconds=60,
    )
    app = create_app(settings)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://service") as client,
    ):

        async def vectors(**more: str) -> list[Any]:
            asked = [{**QUERY, "texts": [foreign.TEXTS[0]], "input_type": side, **more} for side in SIDES]
            answers = [await client.post("/encode", json=body) for body in asked]
            assert len({answer.headers["x-model-version"] for answer in answers}) == 1
            return [answer.json() for answer in answers]

        before = await vectors()
        swapped = await client.put(
            "/admin/aliases/stable", json={"version": new.manifest.version}, headers={"Authorization": "Bearer key"}
        )
        assert swapped.json()["serving"] == new.manifest.version
        now, pinned = await vectors(), await vectors(version=held)
        assert now[0] == before[0] == pinned[0]
        assert now[1] != before[1]
        assert pinned[1] == before[1]


def test_the_command_line_says_what_both_are_and_converts_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    documents, queries = two(tmp_path)
    assert main(["inspect", str(documents), "--query-model", str(queries)]) == 0
    said = dict(line.split(": ", 1) for line in capsys.readouterr().out.splitlines())
    assert said["queries"].startswith("by an encoder of their own, queries: transformers, BertForMaskedLM")
    assert said["lengths"] == "64 tokens for documents, 40 for queries"
    assert said["will be served"] == "yes"
    out = tmp_path / "out"
    assert main(["convert", str(documents), str(out), "--query-model", str(queries), "--pooling", "sum"]) == 0
    capsys.readouterr()
    made = read_artifact(out)
    assert made.manifest.query_encoder is not None
    assert (made.manifest.pooling, made.manifest.query_encoder.pooling) == ("sum", "sum")
    assert main(["inspect", str(out)]) == 0
    assert "queries: by BertForMaskedLM, log1p_relu, sum over positions" in capsys.readouterr().out


def test_the_version_names_both(tmp_path: Path) -> None:
    documents, queries = two(tmp_path)
    other = foreign.small_of_another_seed(tmp_path / "other")
    versions = [pair(documents, path).version for path in (queries, other, queries)]
    assert versions[0] == versions[2] != versions[1]
    assert read_source(documents, "documents").version not in versions


def test_the_licence_of_each_is_kept(tmp_path: Path) -> None:
    documents, queries = two(tmp_path)
    for directory in (documents, queries):
        (directory / "LICENSE").write_text(f"of {directory.name}", encoding="utf-8")
    kept = opened(documents, tmp_path / "cache", queries).path
    texts = [(kept / name).read_text(encoding="utf-8") for name in ("LICENSE", "QUERY_LICENSE")]
    assert texts == [f"of {directory.name}" for directory in (documents, queries)]


def pair(documents: Path, queries: Path, choices: Choices | None = None) -> Source:
    return read_pair(Located(documents, documents.name), Located(queries, queries.name), choices)


Make = Callable[[Path], Path]


@pytest.mark.parametrize(
    ("documents", "queries", "message"),
    [
        (foreign.bert, foreign.roberta, r"tokenizers that differ \(.*model.*\), so the words of one are not those"),
        (foreign.cased_by_its_settings, foreign.small, r"tokenizers that differ \(normalizer\)"),
        (foreign.bert, foreign.splade_prompted, r"keep 0 and 8 tokens \(max_active_dims"),
        (foreign.bert, foreign.with_idf, "queries says itself how queries are encoded: leave out --query-model"),
        (foreign.routed, foreign.small, "documents says itself how queries are encoded: leave out --query-model"),
        (foreign.routed_pair, foreign.small, "documents says itself how queries are encoded: leave out --query-model"),
    ],
)
def test_what_is_no_pair_is_refused(documents: Make, queries: Make, message: str, tmp_path: Path) -> None:
    one, other = documents(tmp_path / "one" / "documents"), queries(tmp_path / "two" / "queries")
    with pytest.raises(ArtifactError, match=message):
        pair(one, other)


def test_queries_that_get_no_vector_are_refused(tmp_path: Path) -> None:
    """Documents do get theirs."""
    documents, queries = two(tmp_path)
    weights = load_file(queries / "model.safetensors")
    weights["cls.predictions.bias"] -= 1000
    save_file(weights, queries / "model.safetensors", {"format": "pt"})
    with pytest.raises(ArtifactError, match="no text gets a vector from it: its training collapsed"):
        opened(documents, tmp_path / "cache", queries)


def test_lengths_are_bounded_by_the_positions_of_each(tmp_path: Path) -> None:
    documents, queries = two(tmp_path)
    assert pair(documents, queries, Choices(max_length_document=70)).max_length_document == 70
    with pytest.raises(ArtifactError, match="41 tokens was asked for, the model has positions for 40"):
        pair(documents, queries, Choices(max_length_query=41))


def test_an_artifact_is_no_part_of_a_pair(tiny_artifact: Path, tmp_path: Path) -> None:
    documents, _ = two(tmp_path)
    for one, other in ((documents, tiny_artifact), (tiny_artifact, documents)):
        with pytest.raises(ArtifactError, match="is an artifact of this project, one version with all that it needs"):
            opened(one, tmp_path / "cache", other)
    with pytest.raises(ValidationError, match="query_model goes with a model, which encodes the documents"):
        Settings(query_model=str(documents))


def test_graphs_of_full_int8_are_kept_apart(artifact: Artifact, tmp_path: Path) -> None:
    """Either side is quantised once, into a place of its own."""
    for side in SIDES:
        part = artifact.part(side)
        (tmp_path / "int8-static").mkdir(exist_ok=True)
        names = {path.name for path in (tmp_path / "int8-static").iterdir()}
        static_int8_graph(part, tmp_path, lambda part=part: openvino_graph(part))  # type: ignore[misc]
        (new,) = {path.name for path in (tmp_path / "int8-static").iterdir()} - names
        assert new.startswith("query." if side == "query" else artifact.manifest.version)


def openvino_graph(artifact: Artifact) -> Any:
    from app.encoders.openvino_encoder import _read_graph

    return _read_graph(artifact, openvino(artifact)._emitted_ids, "lossless")
