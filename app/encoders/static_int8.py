"""Full int8: weights and activations rounded by ranges that were measured beforehand, on the texts of golden.jsonl.

The quickest on a CPU with int8 matrix instructions, and the least exact. Quantised once by NNCF, which a service that
finds the result in its cache directory does not need.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import openvino as ov  # type: ignore[import-untyped]

from app.encoders.base import EncoderError
from app.encoders.graph.splade import HEAD
from sparse_encoder.artifact import MANIFEST, TOKENIZER, Artifact, ArtifactExistsError, file_record, new_directory
from sparse_encoder.tokenizer import Tokenizer

#: Of this module: a graph that another one made is not used again.
QUANTISATION = 1
GRAPH = "graph.xml"

log = logging.getLogger(__name__)


def static_int8_graph(artifact: Artifact, cache_dir: Path, build: Callable[[], ov.Model]) -> ov.Model:
    """The quantised form of the graph that `build` makes, from `cache_dir`, into which it is written the first time.

    :raises EncoderError: if it must be made and NNCF is not installed or the directory cannot be written.
    """
    record = file_record(artifact.path / MANIFEST).sha256[:12]
    release = ov.get_version().split("-")[0]
    target = (
        cache_dir / "int8-static" / f"{artifact.prefix}{artifact.manifest.version}-{record}-{release}-{QUANTISATION}"
    )
    if not target.is_dir():
        try:
            with suppress(ArtifactExistsError), new_directory(target) as directory:  # another process may be quicker
                ov.save_model(_quantise(artifact, build()), directory / GRAPH, compress_to_fp16=False)
        except OSError as error:
            raise EncoderError(
                f"{target.parent} cannot be written ({error}): give a directory that can be, with --cache-dir"
            ) from error
    return ov.Core().read_model(target / GRAPH)


def _quantise(artifact: Artifact, graph: ov.Model) -> ov.Model:
    try:
        import nncf
    except ModuleNotFoundError as error:
        raise EncoderError(
            "--precision int8-static needs NNCF to quantise a model the first time: install the extra `quantise`, or "
            "choose --precision int8"
        ) from error
    log.info("quantising %s, once", artifact.manifest.version)
    texts = [golden.text for golden in artifact.golden() if golden.ids]
    tokenised = Tokenizer.from_file(artifact.path / TOKENIZER).encode_batch(
        texts, artifact.manifest.max_length_document
    )
    batches = [[np.array([text.ids], np.int32), np.array([len(text.ids)], np.int32)] for text in tokenised]
    return nncf.quantize(
        graph,
        nncf.Dataset(batches),
        model_type=nncf.ModelType.TRANSFORMER,
        preset=nncf.QuantizationPreset.MIXED,
        subset_size=len(batches),
        # The weights of the words come straight from it; rounded as well, it costs too much retrieval quality. A head
        # that weighs own tokens has none.
        ignored_scope=nncf.IgnoredScope(patterns=[f"{HEAD}.*"], validate=False),
    )
