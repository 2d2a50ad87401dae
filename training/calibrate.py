"""After training: how often a word may be added to texts that do not hold it.

Training leaves some words that fire for everything (sinks) and many rare ones whose bias is a little too high. Both
cost active words and confuse rankings. So each word's bias is lowered until, over a sample of training texts, it is
added to at most ``rate`` of them, or to ``_OWN`` times as many as hold it, whichever is more.
"""

from __future__ import annotations

import torch
from torch import Tensor
from tqdm import tqdm

from sparse_encoder.batching import by_length
from sparse_encoder.model import SpladeModel
from sparse_encoder.tokenizer import Tokenizer
from training.batches import pad
from training.objectives import OwnWords
from training.vocabulary import Roles

_OWN = 4.0
_BATCH_TOKENS = 4096


@torch.inference_mode()
def excess_bias(
    model: SpladeModel, tokenizer: Tokenizer, roles: Roles, texts: list[str], rate: float, shift: float, max_length: int
) -> Tensor:
    """What to take off the bias of each emitted word, >= 0, when ``shift`` is added to all: [emitted]."""
    assert model.emitted is not None
    own = OwnWords.of(
        roles, model.emitted, torch.zeros(len(roles.emitted_as)), 1.0, getattr(model.mlm, "part_token", None)
    )
    has_table = model.lexical and bool(model.mlm.config.related)
    rows = [text.ids for text in tokenizer.encode_batch(texts, max_length) if text.content_tokens]
    logits = torch.empty((len(rows), len(model.emitted)))
    holders = torch.zeros(len(model.emitted))
    with tqdm(total=len(rows), desc="calibrate", unit="text") as bar:
        for places in by_length([len(row) for row in rows], _BATCH_TOKENS):
            batch = pad([rows[place] for place in places])
            with torch.autocast("cpu", torch.bfloat16):
                states = model.hidden_states(batch.input_ids, batch.attention_mask)
            maxima = model.max_logits(states, batch.input_ids, batch.attention_mask, torch.bfloat16)
            if has_table:
                maxima += model.related(states, batch.input_ids, batch.attention_mask)
            logits[places] = maxima
            held_rows, held_columns = own.held(batch.input_ids)
            for row, place in enumerate(places):
                columns = held_columns[held_rows == row].unique()
                logits[place, columns] = -torch.inf
                holders[columns] += 1
            bar.update(len(places))
    return _excess(logits + shift, holders, rate)


def _excess(logits: Tensor, holders: Tensor, rate: float) -> Tensor:
    """logits [texts, words], -inf where a text holds the word; ``holders`` [words] counts those: [words]."""
    texts = len(logits)
    allowed = torch.maximum(torch.tensor(rate * texts), _OWN * holders).long().clamp(max=texts - 1)
    ordered = logits.sort(dim=0, descending=True).values
    return torch.relu(ordered.gather(0, allowed.unsqueeze(0))[0])
