"""The words of texts, as an encoder under the vocabulary counts them."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from tokenizers import Tokenizer
from tqdm import tqdm

from training.vocabulary import NEVER, Roles

_TOKENS = 128  #: of a text
_CHUNK = 20_000


def term_matrix(
    texts: Iterable[str], tokenizer: Tokenizer, roles: Roles, shares: NDArray[np.float32], description: str
) -> sp.csr_matrix:
    """How often each text holds each word, an occurrence by its share: [texts, vocabulary]."""
    own = np.array(roles.emitted_as)
    with tqdm(desc=description, unit="text", mininterval=2.0) as bar:
        blocks = [sp.csr_matrix(np.zeros((0, len(own)), np.float32))]
        for chunk in _chunks(texts):
            blocks.append(_block(chunk, tokenizer, own, shares))
            bar.update(len(chunk))
    return sp.csr_matrix(sp.vstack(blocks, format="csr"))


def _chunks(texts: Iterable[str]) -> Iterator[list[str]]:
    iterator = iter(texts)
    while chunk := list(itertools.islice(iterator, _CHUNK)):
        yield chunk


def _block(
    texts: list[str], tokenizer: Tokenizer, own: NDArray[np.int64], shares: NDArray[np.float32]
) -> sp.csr_matrix:
    rows = [encoding.ids[:_TOKENS] for encoding in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
    ids = np.fromiter(itertools.chain.from_iterable(rows), np.int64)
    places = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
    words = own[ids]
    kept = words != NEVER
    shape = (len(texts), len(own))
    return sp.csr_matrix((shares[ids[kept]], (places[kept], words[kept])), shape=shape, dtype=np.float32)
