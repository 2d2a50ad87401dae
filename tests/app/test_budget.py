"""How many tokens a run gets, from what was measured."""

from pathlib import Path

import pytest

from app.budget import LONGEST_RUN_SECONDS, choose_batch_tokens, measured_batch_tokens
from app.checkpoints import load_checkpoint
from sparse_encoder.artifact import read_artifact
from tests.app.conftest import openvino
from tests.app.controlled import ControlledEncoder


@pytest.mark.parametrize(
    ("measured", "chosen"),
    [
        ([(256, 0.05), (512, 0.09), (1024, 0.17), (2048, 0.34)], 512),  # .17 s is little better, .34 s too long
        ([(256, 0.05), (512, 0.06), (1024, 0.08)], 1024),
        ([(256, 3.0)], 256),  # slow, but there is nothing smaller
        ([(256, 0.01), (512, 0.02), (1024, 0.04)], 256),
    ],
)
def test_the_smallest_run_that_is_nearly_the_best_within_the_time(
    measured: list[tuple[int, float]], chosen: int
) -> None:
    assert choose_batch_tokens(measured) == chosen
    assert dict(measured)[chosen] <= LONGEST_RUN_SECONDS or len(measured) == 1


def test_without_any_measurement_there_is_no_choice() -> None:
    with pytest.raises(ValueError, match="cannot run its smallest batch"):
        choose_batch_tokens([])


def test_the_longest_text_always_fits_and_memory_is_a_bound(tiny_artifact: Path) -> None:
    artifact = read_artifact(tiny_artifact)
    encoder = ControlledEncoder(openvino(artifact))
    encoder.most_texts = 8
    chosen = measured_batch_tokens(load_checkpoint(artifact, lambda _: encoder))
    assert artifact.manifest.max_length_document <= chosen <= 8 * 64
    assert max(map(len, encoder.batches)) == 16  # which did not fit, so that nothing larger was tried
