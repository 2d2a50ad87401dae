"""How many tokens a run gets, from what was measured."""

from pathlib import Path

import pytest

from app.engine.budget import LEAST, MOST, SECONDS, choose_batch_tokens, measure
from app.models.loaded import load_model
from sparse_encoder.artifact import read_artifact
from tests.app.conftest import openvino
from tests.app.controlled import ControlledEncoder


@pytest.mark.parametrize(
    ("tokens_a_second", "tokens"),
    [(100, LEAST), (4_000, 512), (15_000, 2048), (200_000, MOST), (10_000_000, MOST)],
)
def test_a_run_takes_about_the_time(tokens_a_second: float, tokens: int) -> None:
    assert choose_batch_tokens(tokens_a_second) == tokens
    assert tokens in (LEAST, MOST) or SECONDS / 2 < tokens / tokens_a_second <= SECONDS


def test_the_longest_text_always_fits(tiny_artifact: Path) -> None:
    artifact = read_artifact(tiny_artifact)
    encoder = ControlledEncoder(openvino(artifact))
    model = load_model(artifact, lambda _: encoder)
    assert artifact.manifest.max_length_document <= measure(model).batch_tokens <= MOST
    assert [len(batch) for batch in encoder.batches] == [4, 4]


def test_a_device_without_memory_gets_the_smallest_run(tiny_artifact: Path) -> None:
    artifact = read_artifact(tiny_artifact)
    encoder = ControlledEncoder(openvino(artifact))
    encoder.most_texts = 2
    assert measure(load_model(artifact, lambda _: encoder)) == (LEAST, None)
