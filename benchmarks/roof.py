"""`python -m benchmarks.roof`: what these cores multiply at most, and which share of it the encoder reaches.

The roof is the quickest product of 2,048 positions with a matrix of 768 x 3,072 by torch, in the same minute. What the
encoder has to multiply is counted from the sizes of its layers: attention as far as each layer sees.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from contextlib import ExitStack

from app.models.loaded import EMBEDDED
from benchmarks import models
from benchmarks.encode import Worker, texts_of
from benchmarks.noise import Turns
from benchmarks.products import roof
from sparse_encoder.artifact import read_manifest
from sparse_encoder.layers import LOCAL, Layers, ModernBertShape
from sparse_encoder.layouts import layout_of_config

CASES = [(64, 32), (16, 1)]


def operations(layers: Layers, vocabulary: int, texts: int, length: int) -> float:
    """Of one batch: products with weights, scores and contexts, and the head over `vocabulary` words."""
    tables = (layers.words, "position_embeddings", "token_type_embeddings", "relative_bias")
    weights = sum(
        shape[0] * shape[1]
        for name, shape in layers.body.items()
        if len(shape) == 2 and not any(table in name for table in tables)
    )
    window = 2 * layers.window + 1 if isinstance(layers, ModernBertShape) else length
    kinds = layers.kinds if isinstance(layers, ModernBertShape) else ("",) * layers.layers
    seen = sum(min(length, window) if kind == LOCAL else length for kind in kinds)
    head = 0 if layers.own_weight else layers.embedding_size * vocabulary
    return 2.0 * texts * length * (weights + head + 2 * layers.hidden_size * seen)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.roof", description=__doc__)
    parser.add_argument("--model", choices=["embedded", "modernbert", "bert", "xlmr"], default="modernbert")
    parser.add_argument("--precision", nargs="+", choices=["f32", "bf16", "int8", "int8-static"], default=["f32"])
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args(arguments)
    directory = models.MODELS[options.model]()
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    layers = layout_of_config(config).layers if options.model != "embedded" else None
    turns = Turns()
    with ExitStack() as stack:
        ours = EMBEDDED if options.model == "embedded" else directory
        workers = [stack.enter_context(Worker(f"ours:{precision}", ours)) for precision in options.precision]
        for precision, worker in zip(options.precision, workers, strict=True):
            best = roof("int8" if precision.startswith("int8") else precision, turns)
            print(f"{precision}: roof {best / 1e9:,.0f} G/s")
            for tokens, texts in CASES:
                batch = texts_of(tokens, texts)
                worker.seconds(batch, texts)
                seconds = min(turns.take(lambda: worker.seconds(batch, texts)) for _ in range(options.rounds))  # noqa: B023
                share = ""
                if layers:
                    work = operations(layers, config["vocab_size"], texts, tokens)
                    share = f", {work / seconds / 1e9:,.0f} G/s, {work / seconds / best:.0%} of the roof"
                print(f"  {texts} x {tokens}: {seconds * 1000:,.1f} ms{share}", flush=True)
    print(f"{read_manifest(EMBEDDED).version if options.model == 'embedded' else options.model}; {turns}")


if __name__ == "__main__":
    main()
