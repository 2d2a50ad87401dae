"""A checkpoint in the sizes of the Korean v1 (22 layers, 50,000 tokens, 600 MB) with random weights, from end to end.

`python -m benchmarks.base_shape --dir DIR`: it is written as transformers would, given to the service in its wrapper,
converted, loaded, and its vectors are compared with those of `AutoModelForMaskedLM`. DIR gets about 1.8 GB.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import time
from pathlib import Path

import numpy as np
import transformers

from app.encoders.openvino_encoder import OpenVINOEncoder
from app.models.conversion import open_model
from app.models.loaded import check_golden, load_model
from sparse_encoder.artifact import Artifact
from sparse_encoder.checkpoint.source import Choices
from tests import foreign
from tests.tiny import dense


def exact(artifact: Artifact) -> OpenVINOEncoder:
    return OpenVINOEncoder(artifact, "f32")


def peak_megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dir", type=Path, required=True, help="empty or new directory")
    folder = parser.parse_args().dir
    transformers.utils.logging.disable_progress_bar()
    plain = foreign.base_shape(folder / "plain")
    source = foreign.wrap(shutil.copytree(plain, folder / "wrapped"))
    started = time.perf_counter()
    artifact = open_model(str(source), folder / "cache", Choices(), exact)
    print(f"converted in {time.perf_counter() - started:.1f} s: {artifact.manifest.version}")
    started = time.perf_counter()
    loaded = load_model(artifact, exact)
    print(f"loaded in {time.perf_counter() - started:.1f} s; peak of the process so far {peak_megabytes():,.0f} MB")
    check_golden(loaded)
    expected = foreign.by_transformers(plain, loaded.max_length("document"))
    size = artifact.manifest.vocabulary_size
    expected[:, list(artifact.manifest.never_emitted_ids)] = 0
    worst = max(
        float(np.abs(dense(loaded.vector(text, "document"), size) - row).max())
        for text, row in zip(foreign.TEXTS, expected, strict=True)
    )
    active = [len(loaded.vector(text, "document")) for text in foreign.TEXTS]
    print(f"largest difference from transformers {worst:.1e}, active tokens {active}")


if __name__ == "__main__":
    main()
