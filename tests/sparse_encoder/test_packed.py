from __future__ import annotations

import filecmp
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save_file

from sparse_encoder.artifact import ArtifactError, read_artifact, write_artifact
from sparse_encoder.packed import BLOCK, dequantise, pack, quantise, unpack
from sparse_encoder.weights import Weights
from tests.sparse_encoder.test_artifact import DESCRIPTION, fill
from tests.tiny import publish

ROOT = Path(__file__).parents[2]
ROWS = st.lists(
    st.lists(st.floats(-1e6, 1e6, width=32), min_size=3, max_size=3),
    min_size=1,
    max_size=5,
)


@pytest.fixture(scope="module")
def packed(tiny_artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack(tiny_artifact, tmp_path_factory.mktemp("packed") / "packed")


def bits(matrix: NDArray[np.float32]) -> list[int]:
    return matrix.view(np.uint32).ravel().tolist()


@given(ROWS)
def test_rounding_is_close_and_happens_once(rows: list[list[float]]) -> None:
    matrix = np.array(rows, dtype=np.float32)
    quantised, scales = quantise(matrix)
    rounded = dequantise(quantised, scales)
    assert (np.abs(rounded - matrix) <= 0.5001 * np.abs(matrix).max(axis=1, keepdims=True) / 127 + 1e-28).all()
    again, scales_again = quantise(rounded)
    assert bits(dequantise(again, scales_again)) == bits(rounded)
    assert (again.tolist(), scales_again.tolist()) == (quantised.tolist(), scales.tolist())


@given(ROWS)
def test_products_are_exact(rows: list[list[float]]) -> None:
    quantised, scales = quantise(np.array(rows, dtype=np.float32))
    exact = quantised.astype(np.float64) * scales.astype(np.float64)
    assert (exact == dequantise(quantised, scales)).all()


def test_each_block_of_a_row_has_its_own_scale() -> None:
    matrix = np.ones((2, BLOCK + 3), dtype=np.float32)
    matrix[1, BLOCK:] = 1000
    quantised, scales = quantise(matrix)
    assert scales.shape == (2, 2)
    assert scales[1, 1] > 900 * scales[1, 0]
    assert (quantised == 127).all()
    np.testing.assert_allclose(dequantise(quantised, scales), matrix, rtol=1e-4)


def test_blocks_of_zeros_stay_zeros() -> None:
    quantised, scales = quantise(np.array([[0, 0], [-0.0, 1e-35], [1, -2]], dtype=np.float32))
    assert scales.tolist()[:2] == [[0], [0]]
    assert bits(dequantise(quantised, scales))[:4] == [0, 0, 0, 0]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_matrix_that_is_no_matrix_is_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="NaN or infinity"):
        quantise(np.array([[1.0, bad]], dtype=np.float32))


@pytest.mark.parametrize("name", ["tiny_artifact", "lexical_artifact"])
def test_every_byte_comes_back(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    artifact: Path = request.getfixturevalue(name)
    unpacked = unpack(pack(artifact, tmp_path / "packed"), tmp_path / "out")
    assert unpacked.manifest == read_artifact(artifact).manifest
    names = [entry.name for entry in artifact.iterdir()]
    assert filecmp.cmpfiles(artifact, unpacked.path, names, shallow=False) == (names, [], [])
    assert sorted(tmp_path.iterdir()) == [unpacked.path, tmp_path / "packed"]


def test_tables_of_words_are_read_from_the_packed_form(lexical_artifact: Path, tmp_path: Path) -> None:
    with Weights(pack(lexical_artifact, tmp_path / "packed")) as packed, Weights(lexical_artifact) as whole:
        assert set(packed) == set(whole) > {"own_share", "related_weight"}
        for name in ("own_token", "last_token", "part_token", "related_token"):
            np.testing.assert_array_equal(packed.integers(name), whole.integers(name))
        for name in ("own_share", "related_weight", "own_weight", "relating.weight"):
            np.testing.assert_array_equal(packed[name], whole[name])


def test_packing_makes_the_weights_small(tiny_artifact: Path, packed: Path) -> None:
    before = (tiny_artifact / "model.safetensors").stat().st_size
    after = sum(path.stat().st_size for path in packed.glob("packed-*.safetensors"))
    assert after < 0.3 * before
    with safe_open(packed / "packed-00001.safetensors", framework="numpy") as file:
        kept = [name for name in file.keys() if not name.endswith((":int8", ":scale"))]  # noqa: SIM118 - not a dict
        assert {file.get_tensor(name).ndim for name in kept} == {1}


def test_no_file_is_larger_than_allowed(tiny_artifact: Path, tmp_path: Path) -> None:
    packed = pack(tiny_artifact, tmp_path / "packed", max_file_bytes=70_000)
    sizes = [path.stat().st_size for path in packed.iterdir()]
    assert max(sizes) <= 70_000
    assert len(list(packed.glob("packed-*"))) > 2
    assert unpack(packed, tmp_path / "out").manifest == read_artifact(tiny_artifact).manifest


def test_a_tensor_that_fits_no_file_is_refused(tiny_artifact: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="would exceed 20000 bytes: raise max_file_bytes"):
        pack(tiny_artifact, tmp_path / "packed", max_file_bytes=20_000)
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_rounded_is_kept_as_it_is(tmp_path: Path) -> None:
    """Shards, other types, odd shapes, negative zeros, matrices that were never rounded: all come back."""
    random = np.random.default_rng(1)

    def fill_oddly(directory: Path) -> None:
        fill(directory)
        (directory / "model.safetensors").unlink()
        plain = random.standard_normal((5, 7)).astype(np.float32)
        negative_zero = dequantise(*quantise(plain))
        negative_zero[2, 3] = -0.0
        tensors: dict[str, NDArray[Any]] = {
            "plain": plain,
            "negative zero": negative_zero,
            "half": plain.astype(np.float16),
            "empty": np.zeros((0, 4), dtype=np.float32),
            "scalar": np.array(3, dtype=np.int64),
        }
        save_file(tensors, directory / "model-00001-of-00002.safetensors", {"format": "pt"})
        rounded = {"rounded": dequantise(*quantise(plain))}
        save_file(rounded, directory / "model-00002-of-00002.safetensors")

    artifact = write_artifact(tmp_path / "artifact", fill_oddly, lambda _: DESCRIPTION)
    unpacked = unpack(pack(artifact, tmp_path / "packed"), tmp_path / "out").path
    for path in artifact.iterdir():
        assert path.read_bytes() == (unpacked / path.name).read_bytes()


def test_what_is_there_already_is_used(packed: Path, tmp_path: Path) -> None:
    first = unpack(packed, tmp_path / "out")
    made = (first.path / "model.safetensors").stat().st_ino
    assert unpack(packed, tmp_path / "out") == first
    assert (first.path / "model.safetensors").stat().st_ino == made


def test_another_model_in_its_place_is_refused(packed: Path, tmp_path: Path) -> None:
    publish(tmp_path / "out", version="tiny-v2")
    with pytest.raises(ArtifactError, match="holds model tiny-v2, not tiny-v1: delete it"):
        unpack(packed, tmp_path / "out")


def test_a_damaged_copy_is_refused(packed: Path, tmp_path: Path) -> None:
    (unpack(packed, tmp_path / "out").path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ArtifactError, match=r"model\.safetensors has 0 bytes"):
        unpack(packed, tmp_path / "out")


@pytest.mark.parametrize("name", ["packed-00001.safetensors", "model.safetensors.header", "config.json"])
def test_a_damaged_package_gives_no_artifact(packed: Path, tmp_path: Path, name: str) -> None:
    changed = (packed / name).read_bytes()[:-9] + b"123456789"
    for kind, content in {"gone": None, "cut": b"{", "changed": changed}.items():
        copy = Path(shutil.copytree(packed, tmp_path / kind))
        (copy / name).unlink()
        if content is not None:
            (copy / name).write_bytes(content)
        with pytest.raises(ArtifactError):
            unpack(copy, tmp_path / "out")
        assert not list(tmp_path.glob("*out*"))
        assert not list(tmp_path.glob(".*"))


def test_processes_that_unpack_at_once_all_get_the_artifact(packed: Path, tmp_path: Path) -> None:
    """Each waits for a line on its standard input, so that all start unpacking together."""
    script = (
        "import sys; from pathlib import Path; from sparse_encoder.packed import unpack\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        f"print(unpack(Path({str(packed)!r}), Path({str(tmp_path / 'out')!r})).manifest.version)"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(4)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    assert [process.communicate()[0] for process in processes] == ["tiny-v1\n"] * 4
    assert [process.returncode for process in processes] == [0] * 4
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]
