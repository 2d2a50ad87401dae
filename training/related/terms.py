"""Which words belong together by lists of terms."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy.sparse as sp
from tokenizers import Tokenizer

from training.pairs import STRENGTH, TermPair
from training.vocabulary import NEVER, Roles

_MOST_WORDS = 2  #: of a term whose words bring the other along; of a longer one each says too little


def term_relations(pairs: Sequence[TermPair], tokenizer: Tokenizer, roles: Roles) -> sp.csr_matrix:
    """[vocabulary, vocabulary]: for each word of a term its synonym or translation, where that is one word, by the
    strength of the kind; each of two words (인공 지능) brings half of it. What is merely related corpora know better.
    """
    pairs = [pair for pair in pairs if pair.kind != "related"]
    size = len(roles.emitted_as)
    weights: dict[tuple[int, int], float] = {}
    sides = tokenizer.encode_batch_fast(
        [side for pair in pairs for side in (pair.term, pair.related)], add_special_tokens=False
    )
    words = [sorted({roles.emitted_as[i] for i in side.ids} - {NEVER}) for side in sides]
    for pair, term, related in zip(pairs, words[::2], words[1::2], strict=True):
        for asked, named in ((term, related), (related, term)):
            if len(named) != 1 or not 1 <= len(asked) <= _MOST_WORDS or named[0] in asked:
                continue
            for word in asked:
                key = word, named[0]
                weights[key] = max(weights.get(key, 0.0), STRENGTH[pair.kind] / len(asked))
    rows, columns = np.array(list(weights), np.int64).reshape(-1, 2).T
    return sp.csr_matrix((np.array(list(weights.values()), np.float32), (rows, columns)), shape=(size, size))
