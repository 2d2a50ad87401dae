from __future__ import annotations

from pathlib import Path

import torch

from sparse_encoder.model import SpladeModel
from sparse_encoder.tokenizer import Tokenizer
from tests.tiny import SENTENCES
from training.calibrate import _excess, excess_bias
from training.vocabulary import Roles

OWN = -torch.inf


def test_a_word_is_lowered_until_few_texts_that_lack_it_get_it() -> None:
    logits = torch.tensor([[3.0, 0.5], [2.0, -1.0], [1.0, -1.0], [0.5, -1.0]])
    excess = _excess(logits, torch.zeros(2), rate=0.25)
    assert excess.tolist() == [2.0, 0.0]
    assert ((logits - excess) > 0).sum(0).tolist() == [1, 1]


def test_a_word_that_many_texts_hold_may_be_added_to_more() -> None:
    logits = torch.tensor([[OWN], [3.0], [2.0], [1.0], [0.5], [0.4], [0.3], [0.2]])
    assert _excess(logits, torch.tensor([1.0]), rate=0.0).tolist() == torch.tensor([0.4]).tolist()


def test_the_words_of_a_text_are_not_counted_against_them(tiny_artifact: Path) -> None:
    """Every token emitted as itself: what is added to no text is left alone, whatever it weighs in its own."""
    tokenizer = Tokenizer.from_file(tiny_artifact / "tokenizer.json")
    model = SpladeModel.from_pretrained(tiny_artifact, [])
    roles = Roles(list(range(len(tokenizer.vocabulary))))
    texts = list(SENTENCES)
    with torch.no_grad():
        excess = excess_bias(model, tokenizer, roles, texts, rate=1 / len(texts), shift=1000.0, max_length=64)
    rows = tokenizer.encode_batch(texts, 64)
    held_by_all = set.intersection(*(set(row.ids) for row in rows))
    assert held_by_all
    assert [float(excess[i]) for i in held_by_all] == [0.0] * len(held_by_all)
    others = [i for i in range(len(excess)) if not any(i in row.ids for row in rows)]
    assert (excess[others] > 0).sum() > 50  # the rest are closed in the weights
