"""Scores as OpenSearch computes them. `tests/opensearch` asks a real node."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from app.models.scoring import as_sent, shared_words
from sparse_encoder.vector import SparseVector


def vector(**weights: float) -> SparseVector:
    return SparseVector.from_pairs([int(name[1:]) for name in weights], list(weights.values()))


def cut(weight: float) -> float:
    """A document's weight as Lucene keeps it, by its bits."""
    (bits,) = struct.unpack(">I", struct.pack(">f", weight))
    (kept,) = struct.unpack(">f", struct.pack(">I", bits & 0xFFFF8000))
    return float(kept)


def test_a_weight_arrives_with_five_digits_and_a_query_has_a_heaviest() -> None:
    weights = np.array([70.0, 1.2345678], np.float32)
    assert as_sent(weights, 64).tolist() == pytest.approx([64, 1.2346], abs=1e-6)


def test_rank_features_keeps_nine_bits_of_a_document() -> None:
    query, document = vector(w1=1.7, w2=3.3, w5=1.0), vector(w1=2.3555, w2=0.1237, w9=4.0)
    words = shared_words(query, document, "rank_features")
    assert [word.id for word in words] == [1, 2]  # what adds most comes first
    assert [word.document for word in words] == [cut(2.3555), cut(0.1237)]
    assert cut(2.3555) == 301 / 128  # the ninth bit is the last that is set
    assert sum(word.adds for word in words) == pytest.approx(1.7 * cut(2.3555) + 3.3 * cut(0.1237))


def test_sparse_vector_has_a_byte_for_each() -> None:
    query, document = vector(w1=1.7, w2=20.0, w3=5.0), vector(w1=2.3456, w2=3.4, w3=0.005)
    words = {word.id: word for word in shared_words(query, document, "sparse_vector")}
    assert set(words) == {1, 2}  # 0.005 is less than half a step
    assert words[1].document == pytest.approx(round(2.3456 * 255 / 3) * 3 / 255)
    assert words[1].query == pytest.approx(round(1.7 * 255 / 16) * 16 / 255)
    assert [words[2].document, words[2].query] == pytest.approx([3, 16])  # the ceilings
    (wider,) = shared_words(vector(w2=20.0), vector(w2=3.4), "sparse_vector", (16.0, 32.0))
    assert wider.document == pytest.approx(round(3.4 * 255 / 16) * 16 / 255)
    assert wider.query == pytest.approx(round(20 * 255 / 32) * 32 / 255)


def test_without_rounding_it_is_the_product() -> None:
    query, document = vector(w1=1.7, w2=3.3), vector(w1=2.3456, w2=0.1237)
    assert sum(word.adds for word in shared_words(query, document, "none")) == pytest.approx(query.dot(document))
    assert shared_words(query, vector(w7=1.0), "none") == []
