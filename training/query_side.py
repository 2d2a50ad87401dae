"""What a published model says about queries that are not encoded: its tokens' own weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from sparse_encoder.query_tokens import NEVER, QueryTokens
from training.config import RunError
from training.vocabulary import Roles


def query_tokens(run: Path, roles: Roles, *, default: bool) -> QueryTokens:
    """Each emitted token weighs its idf over the run's training passages (see `training.lexical.idf`).

    Raises ``RunError`` if the run has no counts.
    """
    path = run / "lexical.npz"
    if not path.is_file():
        raise RunError(f"{path}: missing; run `python -m training train` to its end first")
    emitted_as = np.array(roles.emitted_as, np.int32)
    weights = np.zeros(len(emitted_as), np.float32)
    targets = np.unique(emitted_as[emitted_as != NEVER])
    weights[targets] = np.load(path)["idf"][targets]
    return QueryTokens(default, emitted_as, weights)
