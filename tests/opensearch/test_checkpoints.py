"""Checkpoints that people use, as their own software writes them, all the way: looked at, converted, published, served,
indexed and searched on a real node, and swapped for another version."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from sentence_transformers.sparse_encoder import SparseEncoder

from app.opensearch.service import EncoderService
from sparse_encoder.__main__ import main
from sparse_encoder.artifact import Artifact, InputType, read_artifact
from tests import foreign
from tests.app.server import running
from tests.opensearch.live import Live, Run, assert_vectors, dot, neural

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900), pytest.mark.usefixtures("indices")]

DOCUMENTS = [{"text": text} for text in foreign.TEXTS]
Rows = Callable[[Path, InputType], NDArray[np.float32]]  #: [texts, vocabulary] by its own software, for either side


def by_sentence_transformers(source: Path, side: InputType) -> NDArray[np.float32]:
    encoder = SparseEncoder(str(source), device="cpu")
    encode = encoder.encode_query if side == "query" else encoder.encode_document
    rows: Any = encode(foreign.TEXTS, convert_to_sparse_tensor=False)
    return np.asarray(rows.numpy())


@dataclass(frozen=True)
class Checkpoint:
    make: Callable[[Path], Path]
    rows: Rows
    said: str  #: by `inspect`


CHECKPOINTS = {
    "xlm_roberta": Checkpoint(
        foreign.xlm_roberta_of_all_tokens,
        lambda source, _: foreign.by_transformers(source, 64),
        "architecture: XLMRobertaForMaskedLM, 250,002 x 32 embeddings",
    ),
    "bge_m3": Checkpoint(
        foreign.bge_m3_of_all_tokens,
        lambda source, _: foreign.by_bge_m3(source, 64),
        "kind: BGE-M3, its sparse head (sparse_linear.pt)",
    ),
    "router": Checkpoint(foreign.routed_pair, by_sentence_transformers, "queries: by an encoder of their own"),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.soak) if name == "xlm_roberta" else name for name in CHECKPOINTS]
)
def test_a_checkpoint_goes_all_the_way(
    name: str, live: Live, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint, store = CHECKPOINTS[name], str(tmp_path / "store")
    source = checkpoint.make(tmp_path / "checkpoint")
    assert main(["inspect", str(source)]) == 0
    said = capsys.readouterr().out
    assert checkpoint.said in said
    assert "will be served: yes" in said
    versions = []
    for length in ("64", "12"):
        out = tmp_path / length
        assert main(["convert", str(source), str(out), "--max-length-document", length]) == 0
        made = read_artifact(out)
        versions.append(made.manifest.version)
        assert main(["store", store, "publish", str(out), *(["--alias", "stable"] if length == "64" else [])]) == 0
    service_options = ("--store", store, "--admin-key", "key", "--encoder-threads", "1", "--precision", "f32")
    with running("-m", "app", *service_options, "--port", "0") as server:
        service = EncoderService(server.url)
        same_as = partial(check, service, read_artifact(tmp_path / "64"))
        for side in ("document", "query"):
            same_as(side, checkpoint.rows(source, side))
        run("setup", "--encoder", server.url)
        run("setup", "--encoder", server.url, "--name", "second", "--model-version", versions[0])
        live.index("ko-sparse-a", DOCUMENTS)
        of_first = service.encode(foreign.TEXTS)
        assert_vectors(live.vectors("ko-sparse-a"), of_first)
        for text in foreign.TEXTS[:2]:
            (query,) = service.encode([text], input_type="query")
            expected = {str(n): score for n, vector in enumerate(of_first) if (score := dot(query, vector)) > 0}
            assert live.search("ko-sparse-a", neural("text_sparse", text)) == pytest.approx(expected, rel=2**-7)
        run("check", "--encoder", server.url)
        headers = {"Authorization": "Bearer key"}
        body = {"version": versions[1]}
        swap = httpx.put(f"{server.url}/admin/aliases/stable", json=body, headers=headers, timeout=None)
        assert swap.json().get("serving") == versions[1], swap.text
        live.index("ko-sparse-b", DOCUMENTS)
        live.index("second-a", DOCUMENTS)
        now = service.encode(foreign.TEXTS)
        assert now[-1] != of_first[-1], "a long text is cut earlier"
        assert_vectors(live.vectors("ko-sparse-b"), now)
        assert_vectors(live.vectors("second-a"), of_first)


def check(service: EncoderService, artifact: Artifact, side: InputType, expected: NDArray[np.float32]) -> None:
    """What the service answers is what the checkpoint's own software computes, heaviest words first."""
    answered: Sequence[dict[str, float]] = service.encode(
        foreign.TEXTS, input_type=side, sparse_embedding_format="token_id", top_k=200
    )
    for vector, row in zip(answered, expected, strict=True):
        assert vector
        for token_id, weight in vector.items():
            assert weight == pytest.approx(row[int(token_id)], abs=1e-3)  # answers have five digits
        row[[*artifact.manifest.never_emitted_ids, *map(int, vector)]] = 0
        assert len(vector) == 200 or row.max() < 1e-3
