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
from training.encode import encode
from training.module import TiledSplade
from training.pairs import PassagePair
from training.retrieval import measure, rank, to_matrix
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
        sides = [
            encode(self.module.splade, tokenizer, texts, max_length=length, top_k=top_k, bf16=train.bf16)
            for texts, length, top_k in (
                ([pair.query for pair in self.pairs], train.query_tokens, publish.top_k_query),
                ([pair.passage for pair in self.pairs], train.document_tokens, publish.top_k_document),
            )
        ]
        self.module.train(training)
        queries, passages = (to_matrix(side, len(self.module.roles.emitted_as)) for side in sides)
        ids = [str(place) for place in range(len(self.pairs))]
        return measure(rank(queries, passages), [{place} for place in ids], ids)[MEASURE]
