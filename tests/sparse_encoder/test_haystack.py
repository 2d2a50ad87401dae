"""Haystack with Qdrant in memory, as the documentation has it, against the real service."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.app.server import ROOT, running
from tests.tiny import SENTENCES

pytestmark = pytest.mark.slow

QUERY = " ".join(SENTENCES[:6])  #: longer than a query of the tiny model, shorter than a document
#: What the page leaves to its reader, before and after its block. Warnings of other projects are none of ours.
BEFORE = "import json, sys\ntexts, query = json.load(sys.stdin)\n"
AFTER = """
vectors = [embedding.to_dict() for embedding in [*embed(texts, "document"), *embed([query], "query")]]
print(json.dumps({"found": [[document.content, document.score] for document in found], "vectors": vectors}))
"""


def block() -> str:
    page = (ROOT / "docs" / "serving" / "python.md").read_text(encoding="utf-8")
    (code,) = (code for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "haystack" in code)
    return str(code)


def test_documents_come_by_the_product_of_their_vectors_with_that_of_the_query(tiny_artifact: Path) -> None:
    served = ("--model", str(tiny_artifact), "--port", "0", "--encoder-threads", "1", "--precision", "f32")
    with running("-m", "app", *served) as server:
        code = BEFORE + block().replace("http://localhost:8080", server.url) + AFTER
        done = subprocess.run(
            [sys.executable, "-c", code],
            input=json.dumps([SENTENCES, QUERY]),
            env={**os.environ, "HAYSTACK_TELEMETRY_ENABLED": "False"},
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        (as_query,) = httpx.post(f"{server.url}/query/embed_sparse", json={"inputs": QUERY}, timeout=None).json()
        (as_document,) = httpx.post(f"{server.url}/embed_sparse", json={"inputs": QUERY}, timeout=None).json()
    said = json.loads(done.stdout)
    *documents, asked = [dict(zip(one["indices"], one["values"], strict=True)) for one in said["vectors"]]
    # Clients that say nothing of the side choose it by the path.
    assert {value["index"]: pytest.approx(value["value"], abs=2e-4) for value in as_query} == asked
    assert {value["index"] for value in as_document} != set(asked)
    scores = {
        text: sum(weight * vector.get(token_id, 0.0) for token_id, weight in asked.items())
        for text, vector in zip(SENTENCES, documents, strict=True)
    }
    best = sorted(scores, key=lambda text: -scores[text])[:10]
    assert [score for _, score in said["found"]] == pytest.approx([scores[text] for text in best], rel=1e-3)
    assert {text for text, _ in said["found"]} == set(best)
