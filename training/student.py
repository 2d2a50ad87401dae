"""The start of the encoder: e5-small under a new vocabulary, with a lane that carries each word's own weight.

A sparse encoder must first of all keep the words of a text, each with a weight of its own; a network that has to learn
that spends its capacity on it. So the hidden state is widened by ``identity_size`` dimensions in which every token
carries a code of its own past all layers (their output projections do not write there), and the decoder row of a word
holds the same code times the weight the word should have: ``lexical_scale x sqrt(idf)``, on both sides, so that the dot
product of two texts starts as an idf-weighted overlap and training only adds what is missing. ``##noun`` carries the
code of ``noun`` and therefore comes out as ``noun``. Particles, endings and special tokens carry one silent code that
lowers every logit. All of it is plain BERT: any software that runs ``BertForMaskedLM`` computes the same.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor
from transformers import BertConfig, BertForMaskedLM, BertModel

from sparse_encoder.artifact import CLOSED_BIAS
from sparse_encoder.model import SpladeModel
from training.config import ConfigError
from training.vocabulary import NEVER, SPECIAL_TOKENS, Roles

_IDENTITY_SHARE = 0.6  #: standard deviation of an identity dimension relative to the e5 dimensions, at every layer
_HEAD_SCALE = 0.7  #: input of the head's activation; with the shift below GELU works in its linear part
_HEAD_SHIFT = 4.0
_CROSSTALK = 0.4  #: share of a word's own logit that the bias takes off again, to silence codes that resemble it
_SILENCE = 8.0  #: how far a silent position lowers every logit
_NEW_HEADS = re.compile(r"attention\.self\.(query|key|value)\.weight")


def identity_codes(roles: Roles, size: int, seed: int) -> Tensor:
    """A code for each token id, zero mean, unit variance: [vocabulary, size]; the same for all that is not emitted."""
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randn((len(roles.emitted_as) + 1, size), generator=generator)
    codes -= codes.mean(1, keepdim=True)
    silent = torch.nn.functional.normalize(codes[-1], dim=0)
    codes[:-1] -= (codes[:-1] @ silent).unsqueeze(1) * silent
    codes = torch.nn.functional.normalize(codes, dim=1) * size**0.5
    source = [len(codes) - 1 if target == NEVER else target for target in roles.emitted_as]
    chosen: Tensor = codes[source]
    return chosen


def silent_code(codes: Tensor, roles: Roles) -> Tensor:
    return codes[roles.emitted_as.index(NEVER)]


def mean_piece_embeddings(teacher: BertModel, teacher_tokenizer: Tokenizer, pieces: list[str]) -> Tensor:
    """For each new token the mean of the teacher's embeddings of its pieces: [vocabulary, 384]."""
    table = teacher.get_input_embeddings().weight.detach()
    special = {"[PAD]": "<pad>", "[UNK]": "<unk>", "[CLS]": "<s>", "[SEP]": "</s>", "[MASK]": "<unk>"}
    out = torch.zeros((len(pieces), table.shape[1]))
    for i, piece in enumerate(pieces):
        if piece in special:
            out[i] = table[teacher_tokenizer.token_to_id(special[piece])]
            continue
        encoding = teacher_tokenizer.encode(piece.removeprefix("##"), add_special_tokens=False)
        ids = encoding.ids
        if len(ids) > 1 and piece.startswith("##") and encoding.tokens[0] == "▁":
            ids = ids[1:]
        out[i] = table[ids].mean(0)
    return out


@torch.no_grad()
def _norm_input_scales(teacher: BertModel, teacher_tokenizer: Tokenizer, texts: list[str]) -> dict[str, float]:
    """Median standard deviation of what enters each layer norm of the teacher, in the order they are used."""
    seen: dict[str, list[Tensor]] = {}
    handles = []
    for name, module in teacher.named_modules():
        if name.endswith("LayerNorm"):

            def record(_: object, inputs: tuple[Tensor, ...], __: object, name: str = name) -> None:
                seen.setdefault(name, []).append(inputs[0].float().std(-1).flatten())

            handles.append(module.register_forward_hook(record))
    for text in texts:
        teacher(input_ids=torch.tensor([teacher_tokenizer.encode(text).ids[:112]]))
    for handle in handles:
        handle.remove()
    return {name: float(torch.cat(values).median()) for name, values in seen.items()}


@torch.no_grad()
def widen_e5(
    teacher: BertModel,
    teacher_tokenizer: Tokenizer,
    pieces: list[str],
    codes: Tensor,
    sample: list[str],
    *,
    seed: int,
) -> BertForMaskedLM:
    """e5-small under the new vocabulary, wider by the identity lane. ``sample``: texts that set the lane's scale.

    The new attention heads start with zero output: at first the old dimensions compute what e5 computes, up to the
    layer norms, which now see the lane as well and are rescaled for it.
    """
    torch.manual_seed(seed)
    old = teacher.config
    core, lane = old.hidden_size, codes.shape[1]
    head_size = core // old.num_attention_heads
    if lane % head_size:
        raise ConfigError(f"model.identity_size {lane} is not a multiple of the attention head size {head_size}")
    model = BertForMaskedLM(
        BertConfig(
            vocab_size=len(pieces),
            hidden_size=core + lane,
            num_hidden_layers=old.num_hidden_layers,
            num_attention_heads=(core + lane) // head_size,
            intermediate_size=old.intermediate_size,
            max_position_embeddings=old.max_position_embeddings,
            type_vocab_size=old.type_vocab_size,
            layer_norm_eps=old.layer_norm_eps,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            pad_token_id=0,
            tie_word_embeddings=False,
        )
    )
    source = teacher.state_dict()
    state = model.bert.state_dict()  # its tensors are the model's own
    for name, value in source.items():
        # The new heads keep their random query, key and value; all else outside the old block starts at zero.
        (state[name][:core] if _NEW_HEADS.search(name) else state[name]).zero_()
        if not name.startswith("embeddings.word_embeddings"):
            state[name][tuple(slice(size) for size in value.shape)] = value

    words = mean_piece_embeddings(teacher, teacher_tokenizer, pieces)
    constant = source["embeddings.position_embeddings.weight"][:64].mean(0)
    constant = constant + source["embeddings.token_type_embeddings.weight"][0]
    spread = (words + constant).std(1, keepdim=True)
    table = state["embeddings.word_embeddings.weight"]
    table[:, :core] = words
    table[:, core:] = codes * spread * _IDENTITY_SHARE

    # A layer norm sees core + lane dimensions, of which the lane holds a smaller share of the variance, and hands the
    # lane on at the scale that keeps this share in front of the next one.
    shrink = ((core + _IDENTITY_SHARE**2 * lane) / (core + lane)) ** 0.5
    scales = _norm_input_scales(teacher, teacher_tokenizer, sample)
    for name, following in zip(scales, [*list(scales.values())[1:], 1.0], strict=True):
        state[f"{name}.weight"][:core] *= shrink
        state[f"{name}.weight"][core:] = following * shrink
    return model


@dataclass(frozen=True)
class Batch:
    input_ids: Tensor
    attention_mask: Tensor


def pad(rows: list[list[int]]) -> Batch:
    length = max(1, *(len(row) for row in rows)) if rows else 1
    ids = torch.zeros((len(rows), length), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
        mask[i, : len(row)] = 1
    return Batch(ids, mask)


def _token_states(model: SpladeModel, rows: list[list[int]], batch: int = 64) -> tuple[Tensor, Tensor]:
    """Last hidden states of all real positions and their token ids: [positions, hidden], [positions]."""
    states, ids = [], []
    for start in range(0, len(rows), batch):
        part = pad(rows[start : start + batch])
        keep = part.attention_mask.bool()
        states.append(model.hidden_states(part.input_ids, part.attention_mask)[keep])
        ids.append(part.input_ids[keep])
    return torch.cat(states), torch.cat(ids)


@torch.no_grad()
def install_head(
    model: SpladeModel,
    roles: Roles,
    codes: Tensor,
    word_vectors: NDArray[np.floating],
    own_weights: Tensor,
    sample: list[list[int]],
    words: list[list[int]],
    *,
    start_active: int,
) -> dict[str, float]:
    """Set the head so that an untrained model already works: own words at their weight, some related ones.

    ``word_vectors`` [vocabulary, 384] are the teacher's vectors of the tokens' surfaces, ``own_weights`` [vocabulary]
    what each token should weigh on its own, ``sample`` token ids of some texts, ``words`` ``[CLS] word [SEP]`` of every
    emitted id in the order of ``model.emitted``. Returns what was measured.
    """
    assert model.emitted is not None
    head = model.mlm.cls.predictions
    lane = codes.shape[1]
    core = model.mlm.config.hidden_size - lane
    emitted = model.emitted
    silent = silent_code(codes, roles)
    states, ids = _token_states(model, sample)
    speaks = torch.tensor([target != NEVER for target in roles.emitted_as])[ids]
    special = ids < len(SPECIAL_TOKENS)

    # 1. The head's dense layer: both parts to unit scale; special positions are recognised by their state.
    mean = states[speaks].mean(0)
    lane_mean = states[speaks][:, core:].mean(0)
    strength = (states[speaks][:, core:] * codes[ids[speaks]]).mean(1)
    dense = head.transform.dense
    dense.weight.zero_()
    core_scale = _HEAD_SCALE / states[speaks][:, :core].sub(mean[:core]).std()
    lane_scale = _HEAD_SCALE / strength.median()
    dense.weight[:core, :core] = torch.eye(core) * core_scale
    dense.weight[core:, core:] = torch.eye(lane) * lane_scale
    dense.bias[:core] = _HEAD_SHIFT - mean[:core] * core_scale
    dense.bias[core:] = _HEAD_SHIFT - lane_mean * lane_scale
    centred = states[:, :core] - mean[:core]
    covariance = centred[speaks].T @ centred[speaks] / int(speaks.sum())
    covariance += torch.eye(core) * covariance.diagonal().mean() * 0.1
    direction = torch.linalg.solve(covariance, centred[special].mean(0))
    direction /= direction @ centred[special].mean(0)  # 1 at special positions, about 0 elsewhere
    dense.weight[core:, :core] += torch.outer(silent, direction) * _HEAD_SCALE
    dense.bias[core:] -= silent * (direction @ mean[:core]) * _HEAD_SCALE
    head.transform.LayerNorm.weight.fill_(1.0)
    head.transform.LayerNorm.bias.zero_()

    # 2. The decoder's semantic part: the teacher's word vectors.
    vectors = torch.from_numpy(np.asarray(word_vectors, np.float32))
    vectors = torch.nn.functional.normalize(vectors - vectors[emitted].mean(0), dim=1) * 0.75
    weight = head.decoder.weight
    weight.zero_()
    weight[emitted, :core] = vectors[emitted]
    head.decoder.bias.fill_(CLOSED_BIAS)
    head.decoder.bias[emitted] = 0.0

    # 3. The bias of each word: so far above its usual maximum that about ``start_active`` words fire in a text.
    maxima = torch.cat(
        [
            model.max_logits(model.hidden_states(b.input_ids, b.attention_mask), b.attention_mask)
            for b in (pad(sample[i : i + 64]) for i in range(0, len(sample), 64))
        ]
    )
    own = torch.cat(
        [
            model.max_logits(model.hidden_states(b.input_ids, b.attention_mask), b.attention_mask)[
                torch.arange(len(b.input_ids)), torch.arange(i, i + len(b.input_ids))
            ]
            for i, b in ((i, pad(words[i : i + 256])) for i in range(0, len(words), 256))
        ]
    )
    usual, spread = maxima.mean(0), maxima.std(0)
    low, high = 0.0, 10.0
    for _ in range(30):
        steps = (low + high) / 2
        active = float((maxima > usual + steps * spread).sum(1).float().mean())
        low, high = (steps, high) if active > start_active else (low, steps)
    bias = -(usual + steps * spread)

    # 4. The identity part: own logit = log1p^-1 of the weight the word should have, less what the bias takes.
    transformed = head.transform(states[speaks])[:, core:]
    received = float((transformed * codes[ids[speaks]]).mean(1).median())  # what the lane delivers for gain 1
    target = torch.expm1(own_weights[emitted])
    gain = ((target - own - bias) / (received * (1 - _CROSSTALK))).clamp(min=0.5)
    weight[emitted, core:] = gain.unsqueeze(1) * codes[emitted] / lane - silent * (_SILENCE / received / lane)
    head.decoder.bias[emitted] = bias - _CROSSTALK * received * gain
    return {"bias steps": steps, "gain": float(gain.mean()), "received": received, "active": active}
