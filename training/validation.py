"""The best checkpoint of a run is the one that retrieves best on pairs kept from training, not that of lowest loss."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import tokenizers
from transformers import TrainerCallback

from sparse_encoder.tokenizer import Tokenizer
from training.config import Config
from training.encode import Search, Side
from training.module import TiledSplade
from training.pairs import PassagePair
from training.retrieval import measure
from training.run import whole_directory, write_json

logger = logging.getLogger(__name__)

MEASURE = "nDCG@10"


class Validation(TrainerCallback):
    """At every saved checkpoint: nDCG@10 of the held-out queries over the held-out passages.

    The module that did best so far stands in ``out / "best"``, all figures in ``out / "validation.json"``.
    """

    def __init__(self, config: Config, module: TiledSplade, pairs: list[PassagePair], out: Path) -> None:
        self.config, self.module, self.pairs, self.out = config, module, pairs, out

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step:  # the run was perhaps stopped between saving this checkpoint and measuring it
            self.on_save(args, state, control)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if not state.is_world_process_zero:
            return
        path = self.out / "validation.json"
        figures: dict[str, float] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        step = str(state.global_step)
        if step in figures:
            return
        figure = self.measure()
        logger.info("step %s: validation %s %.4f", step, MEASURE, figure)
        if figure > max(figures.values(), default=-1.0):
            with whole_directory(self.out / "best") as folder:
                self.module.save(str(folder))
        figures[step] = figure
        write_json(path, figures)

    def measure(self) -> float:
        """nDCG@10 of the module as it is."""
        train, publish = self.config.train, self.config.publish
        tokenizer = Tokenizer(tokenizers.Tokenizer.from_str(self.module.tokenizer.to_str()))
        training = self.module.training
        self.module.eval()
        found = Search.encode(
            self.module.splade,
            tokenizer,
            Side([pair.query for pair in self.pairs], train.query_tokens, publish.top_k_query),
            Side([pair.passage for pair in self.pairs], train.document_tokens, publish.top_k_document),
            bf16=train.bf16,
            description="validation",
        )
        self.module.train(training)
        ids = [str(place) for place in range(len(self.pairs))]
        return measure(found.rank(), [{place} for place in ids], ids)[MEASURE]
