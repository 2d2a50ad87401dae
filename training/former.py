"""Sparse vectors of pairs as a model had them before it was trained on: a teacher of scores."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from sklearn.decomposition import TruncatedSVD
from sklearn.preprocessing import normalize
from torch import Tensor

_TOPICS = 128  #: dimensions in which queries are near that ask for alike passages
_FITTED_ON = 8_192  #: passages, of pairs in random order


@dataclass(frozen=True, eq=False)
class FormerVectors:
    """Of the first ``train.teacher_pairs`` pairs; the score of a query and a passage is their dot product."""

    queries: sp.csr_matrix  #: [pairs, words]
    passages: sp.csr_matrix

    def scores(self, rows: Tensor) -> Tensor:
        """Of the queries and the passages of the pairs ``rows``: [rows, rows]."""
        places = rows.cpu().numpy()
        found = (self.queries[places] @ self.passages[places].T).toarray()
        return torch.from_numpy(found).to(rows.device)

    def topics(self, seed: int) -> NDArray[np.float16]:
        """The queries in a space of few dimensions, normalised: [pairs, topics]."""
        passages = self.passages[:_FITTED_ON]
        size = min(_TOPICS, *(extent - 1 for extent in passages.shape))
        reduced = TruncatedSVD(size, random_state=seed).fit(passages).transform(self.queries)
        return np.asarray(normalize(reduced), np.float16)

    @classmethod
    def read(cls, folder: Path) -> FormerVectors:
        queries, passages = (sp.csr_matrix(sp.load_npz(folder / f"{name}.npz")) for name in ("queries", "passages"))
        return cls(queries, passages)
