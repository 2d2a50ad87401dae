"""Encode many texts offline with the torch reference into pruned sparse vectors, and search with them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from tqdm import tqdm

from sparse_encoder.batching import by_length
from sparse_encoder.model import SpladeModel
from sparse_encoder.tokenizer import Tokenizer
from sparse_encoder.vector import SparseVector
from training.batches import pad
from training.retrieval import Ranking, rank, to_matrix

_BATCH_TOKENS = 4096


@torch.inference_mode()
def encode(
    model: SpladeModel,
    tokenizer: Tokenizer,
    texts: list[str],
    *,
    max_length: int,
    top_k: int | None = None,
    bf16: bool = False,
    description: str = "encode",
) -> list[SparseVector]:
    """Vectors of ``texts`` in their order; a text without any content token gives an empty one.

    ``bf16``: the encoder body and the decoder product in bfloat16, for measuring many texts; exact vectors need False.
    """
    tokenised = tokenizer.encode_batch(texts, max_length)
    content = [i for i, text in enumerate(tokenised) if text.content_tokens]
    vectors = [SparseVector.from_pairs([], [])] * len(texts)
    device = model.decoder.weight.device
    with tqdm(total=len(content), desc=description, unit="text", mininterval=2.0) as bar:
        for places in by_length([len(tokenised[i].ids) for i in content], _BATCH_TOKENS):
            chosen = [content[place] for place in places]
            batch = pad([tokenised[i].ids for i in chosen])
            ids, mask = batch.input_ids.to(device), batch.attention_mask.to(device)
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                states = model.hidden_states(ids, mask)
            weights = model.weights(states, ids, mask, torch.bfloat16 if bf16 else torch.float32)
            for i, row in zip(chosen, weights, strict=True):
                active = row.nonzero()[:, 0]
                words = active if model.emitted is None else model.emitted[active]
                vectors[i] = SparseVector.from_pairs(words.numpy(force=True), row[active].numpy(force=True)).prune(
                    top_k=top_k
                )
            bar.update(len(chosen))
    return vectors


@dataclass(frozen=True)
class Side:
    """The texts of one side of a search, and how they are encoded."""

    texts: list[str]
    max_length: int  #: tokens
    top_k: int  #: words that are kept


@dataclass(frozen=True)
class Search:
    """Queries and documents as vectors."""

    queries: list[SparseVector]
    documents: list[SparseVector]
    vocabulary_size: int

    @classmethod
    def encode(
        cls, model: SpladeModel, tokenizer: Tokenizer, queries: Side, documents: Side, *, bf16: bool, description: str
    ) -> Search:
        of_queries, of_documents = (
            encode(
                model,
                tokenizer,
                side.texts,
                max_length=side.max_length,
                top_k=side.top_k,
                bf16=bf16,
                description=f"{description} {name}",
            )
            for name, side in (("queries", queries), ("documents", documents))
        )
        return cls(of_queries, of_documents, len(tokenizer.vocabulary))

    def cut(self, top_k_query: int, top_k_document: int) -> Search:
        """The same with the heaviest words of each vector only."""
        queries = [vector.prune(top_k=top_k_query) for vector in self.queries]
        documents = [vector.prune(top_k=top_k_document) for vector in self.documents]
        return Search(queries, documents, self.vocabulary_size)

    def rank(self, queries: list[SparseVector] | None = None) -> list[Ranking]:
        """What each of ``queries``, else of the search's own, finds among the documents."""
        asked = to_matrix(self.queries if queries is None else queries, self.vocabulary_size)
        return rank(asked, to_matrix(self.documents, self.vocabulary_size))
