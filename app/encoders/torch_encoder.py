"""The encoder on a GPU: the checkpoint in torch. It runs on a CPU as well, which is how it is tested."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from torch import Tensor, nn

from app.encoders.base import EncoderError, OutOfMemory, TokenBatch, own_rows
from app.encoders.explaining import Head, Reading, Reason, reasons
from sparse_encoder.architectures import Architecture
from sparse_encoder.artifact import Activation, Artifact
from sparse_encoder.modeling_lexical_bert import INTEGERS, NONE, LexicalBertForMaskedLM, put_own_words
from sparse_encoder.own_weights import OwnWeights
from sparse_encoder.vector import SparseVector
from sparse_encoder.weights import Weights, WeightsError

TorchPrecision = Literal["f32", "bf16", "f16"]
DTYPES: dict[TorchPrecision, torch.dtype] = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}

#: See `Encoder.rounding`.
ROUNDING: dict[TorchPrecision, float] = {"f32": 0.0, "bf16": 0.12, "f16": 0.05}
#: Rows of the output matrix whose logits exist at a time: 8,192 positions take 128 MB in bf16. Where weights are summed
#: up over the positions, which is done in f32, an eighth.
VOCABULARY_TILE = 8192
#: Classes that are not those of transformers.
OURS: Mapping[Architecture, Any] = {"LexicalBertForMaskedLM": LexicalBertForMaskedLM, "XLMRobertaModel": OwnWeights}


class TorchEncoder:
    """The head runs over tiles of the vocabulary, each reduced over the positions of all texts at once, so that a batch
    launches as many kernels whatever it holds. What is active is picked on the device, which nobody waits for before.
    """

    def __init__(self, artifact: Artifact, device: str, precision: TorchPrecision) -> None:
        """Loads `artifact` to `device`, such as `cuda`, `cuda:1`, `mps` or `cpu`.

        :raises EncoderError: if the weights are not those of the architecture that its manifest names.
        """
        manifest = artifact.manifest
        self.device = f"{device} {precision}"
        self.rounding = ROUNDING[precision]
        self._device = torch.device(device)
        self._activation: Activation = manifest.activation
        self._pooling = manifest.pooling
        model: Any = _load(artifact)
        model.to(device=self._device, dtype=DTYPES[precision])
        self._lock = threading.Lock()
        self._model = model
        self._own_tokens = isinstance(model, OwnWeights)
        self._is_emitted = np.ones(manifest.vocabulary_size, np.bool_)
        self._is_emitted[list(manifest.never_emitted_ids)] = False
        if not self._own_tokens:
            self._take_head(model)

    def _take_head(self, model: Any) -> None:
        """The head over the vocabulary, without the rows of what is never emitted."""
        decoder = model.get_output_embeddings()
        emitted = np.flatnonzero(self._is_emitted)
        self._ids = torch.from_numpy(emitted).to(self._device)
        self._rows = decoder.weight[self._ids].detach()  # [n, hidden]
        self._bias = decoder.bias[self._ids].detach().float()  # [n]
        self._column = torch.full((len(self._is_emitted),), -1, device=self._device)
        self._column[self._ids] = torch.arange(len(emitted), device=self._device)
        self._lexical = isinstance(model, LexicalBertForMaskedLM)
        # A LexicalBert may have words whose row is zero: they have their bias and cost no product.
        has_row = self._rows.any(1) if self._lexical else torch.ones_like(self._bias, dtype=torch.bool)
        self._headed = None if has_row.all() else has_row.nonzero()[:, 0]
        if self._headed is not None:
            self._rows = self._rows[self._headed]
        if not self._lexical:
            model.set_output_embeddings(_PassThrough())  # what the decoder would multiply comes out instead of logits

    def specialise(self) -> None:
        """See `Encoder.specialise`: there is nothing to prepare."""

    def prepare_aside(self) -> None:
        """See `Encoder.prepare_aside`: there is nothing to prepare."""

    def give_back_memory(self) -> None:
        """See `Encoder.give_back_memory`: what a GPU's allocator keeps is its own to use again."""

    def device_memory_bytes(self) -> int:
        """See `Encoder.device_memory_bytes`."""
        if self._device.type == "cuda":
            return torch.cuda.memory_allocated(self._device)
        return torch.mps.current_allocated_memory() if self._device.type == "mps" else 0

    def encode(self, batch: TokenBatch, *, aside: bool = False) -> list[SparseVector]:
        """See `Encoder.encode`: on a GPU nothing takes long."""
        try:
            with self._lock, torch.inference_mode():
                if self._own_tokens:
                    return own_rows(self._model(*self._inputs(batch)).cpu().numpy(), batch, self._is_emitted)
                rows, columns, weights = self._encode(batch)
        except torch.OutOfMemoryError as error:
            if self._device.type == "cuda":
                torch.cuda.empty_cache()
            raise OutOfMemory(str(error)) from None  # the cause holds tensors
        ends = np.searchsorted(rows, np.arange(1, len(batch.lengths)))
        return [
            SparseVector(ids, values)
            for ids, values in zip(np.split(columns, ends), np.split(weights, ends), strict=True)
        ]

    def _encode(self, batch: TokenBatch) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.float32]]:
        """The active entries of all texts: text, token and weight, by text and heaviest first."""
        ids, mask = self._inputs(batch)
        vectors = self._own_and_added(ids, mask) if self._lexical else self._vectors(ids, mask)
        finite = torch.isfinite(vectors).all()
        rows, columns = torch.nonzero(vectors >= torch.finfo(torch.float32).tiny, as_tuple=True)  # waits for the device
        if not finite:
            raise ValueError("the encoder computed NaN or infinity: its checkpoint is broken")
        weights = vectors[rows, columns]
        # Stable, by weight and then by text: within a text heaviest first, equal weights by ascending id.
        order = torch.argsort(weights, descending=True, stable=True)
        order = order[torch.argsort(rows[order], stable=True)]
        tokens = self._ids[columns[order]].to(torch.int32)
        return rows[order].cpu().numpy(), tokens.cpu().numpy(), weights[order].cpu().numpy()

    def explain(self, ids: Sequence[int], words: NDArray[np.int32]) -> list[Reason]:
        """See `Encoder.explain`: in the precision in which it encodes."""
        try:
            with self._lock, torch.inference_mode():
                reading = self._read(TokenBatch.pad([ids], 0))
                head = None if self._own_tokens else self._head_of(words)
        except torch.OutOfMemoryError as error:
            if self._device.type == "cuda":
                torch.cuda.empty_cache()
            raise OutOfMemory(str(error)) from None  # the cause holds tensors
        return reasons(reading, head, words, self._activation, self._pooling)

    def _read(self, batch: TokenBatch) -> Reading:
        """Of the only text of `batch`."""
        ids, mask = self._inputs(batch)
        length = ids.shape[1]
        nothing: NDArray[np.float32] = np.empty((0, length), np.float32)
        places: NDArray[np.int32] = nothing.astype(np.int32)
        related: NDArray[np.int32] = nothing.T.astype(np.int32)
        weights = shares = nothing
        added = states = nothing.T
        speaks = np.ones(length, np.bool_)
        if self._own_tokens:
            places = np.where(self._is_emitted[batch.ids], batch.ids, np.int32(NONE))
            weights, shares = _array(self._model(ids, mask)), np.ones(places.shape, np.float32)
        elif self._lexical:
            hidden = self._model.bert(input_ids=ids, attention_mask=mask.to(torch.int64))[0]
            own = self._model.own_words(ids, mask)
            of_places = self._model.own_weights(hidden, own)
            places = own.tokens.cpu().numpy().astype(np.int32).reshape(-1, length)
            weights, shares = (_array(part).reshape(-1, length) for part in (of_places, own.shares))
            speaks = places[0] != NONE
            states = _array(self._model.head_states(hidden, ids)[0])
            if self._model.config.related:
                tokens, adds = self._model.related_words(hidden, own, of_places)
                related = tokens.cpu().numpy().astype(np.int32).reshape(length, -1)
                added = _array(adds).reshape(length, -1)
        else:
            states = _array(self._head_states(ids, mask)[0])
        return Reading(
            ids=batch.ids[0],
            places=places,
            weights=weights,
            shares=shares,
            related=related,
            added=added,
            states=states,
            speaks=speaks,
        )

    def _head_of(self, words: NDArray[np.int32]) -> Head:
        """The rows and biases of `words`; zeros for a word that has no row."""
        columns = self._column[torch.from_numpy(words).to(self._device, torch.int64)]
        rows = np.zeros((len(words), self._rows.shape[1]), np.float32)
        if self._headed is None:
            rows[:] = _array(self._rows[columns])
        else:
            at = torch.searchsorted(self._headed, columns).clamp(max=len(self._headed) - 1)
            has_row = self._headed[at] == columns
            rows[has_row.cpu().numpy()] = _array(self._rows[at[has_row]])
        return Head(rows, _array(self._bias[columns]))

    def _inputs(self, batch: TokenBatch) -> tuple[Tensor, Tensor]:
        """Ids and, true for a token, mask: [B, L]."""
        ids, lengths = (self._on_device(part) for part in (batch.ids, batch.lengths))
        return ids, torch.arange(ids.shape[1], device=self._device) < lengths[:, None]

    def _on_device(self, values: NDArray[np.int32]) -> Tensor:
        tensor = torch.from_numpy(values)
        if self._device.type == "cuda":
            tensor = tensor.pin_memory()  # from elsewhere the copy would wait for what the device does
        return tensor.to(self._device, non_blocking=True).to(torch.int64)

    def _head_states(self, ids: Tensor, mask: Tensor) -> Tensor:
        """What the decoder multiplies, [B, L, hidden]."""
        states: Tensor = self._model(input_ids=ids, attention_mask=mask.to(torch.int64)).logits
        return states

    def _own_and_added(self, ids: Tensor, mask: Tensor) -> Tensor:
        """The vectors of a LexicalBert, f32 [texts, n]."""
        model = self._model
        hidden = model.bert(input_ids=ids, attention_mask=mask.to(torch.int64))[0]
        own = model.own_words(ids, mask)
        weights = model.own_weights(hidden, own)
        logits = self._max_logits(model.head_states(hidden, ids), own.speaks)
        if model.config.related:
            tokens, added = model.related_words(hidden, own, weights)
            columns = self._column[tokens]
            logits = logits.scatter_add(1, columns.clamp(min=0), added * (columns >= 0))
        return put_own_words(self._activate(logits), weights, own.tokens, self._column)

    def _max_logits(self, states: Tensor, counts: Tensor) -> Tensor:
        """The largest logits over the positions that count, f32 [texts, n]: `states` [B, L, hidden], `counts` [B, L].

        A copy of one that counts stands in for each that does not, which leaves a maximum as it is.
        """
        texts = torch.arange(len(states), device=self._device)
        one = states[texts, counts.to(torch.uint8).argmax(1)]
        states = torch.where(counts[:, :, None], states, one[:, None])
        logits: Tensor = torch.cat([(states @ rows.T).amax(1) for rows in self._rows.split(VOCABULARY_TILE)], 1).float()
        if self._headed is None:
            logits = logits + self._bias
        else:
            biases = self._bias.expand(len(logits), -1)
            logits = biases.index_copy(1, self._headed, logits + self._bias[self._headed])
        logits = logits.masked_fill(~counts.any(1, keepdim=True), -torch.inf)
        return logits

    def _vectors(self, ids: Tensor, mask: Tensor) -> Tensor:
        """f32 [texts, n]."""
        states = self._head_states(ids, mask)
        if self._pooling == "max":
            return self._activate(self._max_logits(states, mask))
        tile = VOCABULARY_TILE // 8
        tiles = zip(self._rows.split(tile), self._bias.split(tile), strict=True)
        real = mask[:, :, None]
        return torch.cat([(self._activate((states @ rows.T).float() + bias) * real).sum(1) for rows, bias in tiles], 1)

    def _activate(self, logits: Tensor) -> Tensor:
        weights = torch.relu(logits)
        for _ in range(self._activation.count("log1p")):
            weights = torch.log1p(weights)
        return weights


def _array(tensor: Tensor) -> NDArray[np.float32]:
    values: NDArray[np.float32] = tensor.float().cpu().numpy()
    return values


def _tensor(weights: Weights, name: str) -> NDArray[Any]:
    return weights.integers(name) if name in INTEGERS else weights[name]


class _PassThrough(nn.Module):
    """In the place of a decoder; transformers asks some for these."""

    weight = bias = None

    def forward(self, states: Tensor) -> Tensor:
        return states


def _load(artifact: Artifact) -> nn.Module:
    """The model class is transformers' own, or ours; no code of the checkpoint runs."""
    architecture = artifact.manifest.architecture
    kind: Any = OURS.get(architecture) or getattr(transformers, architecture)
    config = kind.config_class.from_json_file(str(artifact.config))
    config._attn_implementation = "sdpa" if kind._supports_sdpa else "eager"
    model: Any = kind(config).eval()
    try:
        with Weights(artifact.path, artifact.prefix) as weights:
            missing, unexpected = model.load_state_dict(
                {name: torch.from_numpy(_tensor(weights, name)) for name in weights}, strict=False
            )
    except (WeightsError, RuntimeError) as error:
        raise EncoderError(f"the weights do not fit {artifact.manifest.architecture}: {error}") from error
    model.tie_weights()
    tied = set(model._tied_weights_keys or {})
    if lacking := sorted(set(missing) - tied):
        raise EncoderError(f"the checkpoint has no weight {lacking[0]}: publish or convert it again")
    if unexpected:
        raise EncoderError(f"the checkpoint has a weight {unexpected[0]} that {kind.__name__} does not know")
    loaded: nn.Module = model
    return loaded
