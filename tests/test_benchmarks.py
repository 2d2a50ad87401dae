"""What benchmarks say of the machine's noise, of the roof, and of the figures that they make."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import encode, http, models
from benchmarks.all import Figure, known
from benchmarks.figures import DIRECTORY
from benchmarks.noise import Ticks, Turns
from benchmarks.roof import operations
from sparse_encoder.layouts import layout_of_config


def test_stolen_time_is_a_share_of_all_time(tmp_path: Path) -> None:
    stat = tmp_path / "stat"
    stat.write_text("cpu  100 0 50 800 10 0 0 40 7 7\ncpu0 1 1 1 1 1 1 1 1 1 1\n", encoding="ascii")
    before = Ticks.now(stat)
    assert before == Ticks(40, 1000)
    assert before.stolen_until(Ticks(50, 1100)) == pytest.approx(0.1)
    assert before.stolen_until(before) == 0
    assert 0 <= Ticks.now().stolen <= Ticks.now().total


def stolen_at(shares: list[float]) -> Iterator[Ticks]:
    """Before and after each turn, which takes 100 ticks, of which such a share is stolen."""
    now = Ticks(0, 0)
    yield now
    for share in shares:
        yield now
        now = Ticks(now.stolen + round(100 * share), now.total + 100)
        yield now
    yield now


def test_a_disturbed_turn_is_taken_again_and_the_calmest_counts() -> None:
    seconds = iter([9.0, 3.0, 2.0, 8.0, 4.0, 7.0])
    turns = Turns(stolen_at([0.5, 0.01, 0.0, 0.3, 0.1, 0.2]).__next__)
    assert turns.take(lambda: next(seconds)) == 3.0  # the first lost half of its time
    assert turns.take(lambda: next(seconds)) == 2.0
    assert turns.take(lambda: next(seconds)) == 4.0  # of three disturbed ones
    assert str(turns) == "stolen by neighbours 18.5% of the time, 3 turns repeated"


def test_what_is_to_be_multiplied_is_counted_from_the_sizes() -> None:
    config = {"model_type": "bert", **models.BERT, "num_hidden_layers": 1, "vocab_size": 100}
    layers = layout_of_config(config).layers
    wide, size = models.BERT["intermediate_size"], models.BERT["hidden_size"]
    a_token = 4 * size * size + 2 * size * wide + size * size + 100 * size + 2 * size * 7
    assert operations(layers, 100, texts=3, length=7) == 2 * 3 * 7 * a_token


def test_a_layer_that_sees_its_neighbours_only_is_counted_so() -> None:
    layers = layout_of_config({"model_type": "modernbert", **models.MODERNBERT}).layers
    longer = operations(layers, 1, 1, 8192) - 4 * operations(layers, 1, 1, 2048)
    size, whole = models.MODERNBERT["hidden_size"], 8  # of 22 layers; the others grow with the length alone
    assert longer == pytest.approx(4 * size * whole * (8192**2 - 4 * 2048**2), rel=1e-6)


@pytest.mark.parametrize("name", sorted(path.stem for path in DIRECTORY.glob("*.md")))
def test_every_figure_says_how_it_is_made_again(name: str) -> None:
    figure = Figure.parse((DIRECTORY / f"{name}.md").read_text(encoding="utf-8"))
    assert figure.table.startswith("|")
    module, *rest = figure.arguments(Path("/sets"))[1:]
    assert (Path(__file__).parent.parent / f"{module.replace('.', '/')}.py").is_file()
    assert rest[-1] == "--figures"
    assert "..." not in rest


def test_a_file_that_no_benchmark_wrote_is_no_figure() -> None:
    with pytest.raises(ValueError, match="no caption of a figure: 'by hand'"):
        Figure.parse("| a |\n\nby hand")


def test_milliseconds_stand_beside_those_of_the_first_peer() -> None:
    seconds = {"ours:bf16": [0.01, 0.02, 0.03], "torch": [0.1, 0.1, 0.2]}
    assert encode.table(
        {"bert": [{"tokens": 16, "batch": 1, "seconds": seconds}]}, ["ours:bf16", "torch", "openvino"]
    ) == (
        "| milliseconds | `ours:bf16` | `torch` | `openvino` |\n|---|---|---|---|\n"
        "| BERT, 152 M: 1 text of 16 tokens | 20.0 (5.0x) | 100.0 |  |"
    )


def test_one_file_holds_every_figure_as_it_is() -> None:
    there = json.loads((DIRECTORY / "all.json").read_text(encoding="utf-8"))
    assert known(there) == there, "a figure was measured since: python -m benchmarks.all --data DIR --only NAME"
    changed = {name: {**figure, "table": "", "stolen": 0.5} for name, figure in there.items()}
    assert all("stolen" not in figure for figure in known(changed).values())


def test_what_a_crowd_gets_stands_beside_the_best_batch() -> None:
    crowd = {"texts_per_second": 450.0, "asking": 0.1, "p50": 100.0, "p99": 120.0}
    times = {"query_ms": 5.0, "peer_ms": 20.0, "overhead_ms": 1.0, "echo_ms": 0.2}
    result = {"model": "embedded", "precision": "int8", "closed": {256: crowd}, "in_process_texts_per_second": 500.0}
    lines = http.markdown([result | times]).splitlines()
    assert lines[0] == "|  | embedded, `int8` |"
    assert "| one client, p50 (SparseEncoder in its own process) | 5.0 ms (20.0, 4.0x) |" in lines
    assert "| share of the best batch in process | 90% |" in lines
    assert "| of what the clients leave of the processors | 100% |" in lines
    assert "| their p99 / p50 | 1.2 |" in lines
