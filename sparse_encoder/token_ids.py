"""Token ids for OpenSearch's `sparse_vector` fields, which hold ids below 32,768 only.

The ids of a small vocabulary serve as they are. For a larger one the artifact carries `token_ids.json`: token to id,
for the tokens that can be emitted. A token keeps its id in every later version, so that an index stays valid.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from sparse_encoder.artifact import TOKEN_IDS, ArtifactError

MAX_TOKEN_IDS = 32_768  #: OpenSearch folds ids into a signed short: a larger one breaks every search of the index


def assign_token_ids(tokens: Sequence[str], previous: Mapping[str, int]) -> dict[str, int]:
    """An id for each of `tokens`: that of `previous`, the map of an earlier version, else the lowest free one.

    Ids of tokens that are gone stay reserved, since indexed documents may hold them.

    :raises ArtifactError: if there are not enough ids.
    """
    assigned = dict(previous)
    new = [token for token in tokens if token not in assigned]
    if len(assigned) + len(new) > MAX_TOKEN_IDS:
        raise ArtifactError(
            f"{len(tokens):,} tokens can be emitted and {len(assigned):,} ids were given away by earlier versions, but "
            f"a sparse_vector field holds {MAX_TOKEN_IDS:,} ids: emit fewer tokens, or number them anew "
            "(training publish --new-token-ids) and encode indexes with sparse_vector fields anew"
        )
    taken = set(assigned.values())
    free = (token_id for token_id in range(MAX_TOKEN_IDS) if token_id not in taken)
    return assigned | dict(zip(new, free, strict=False))


def write_token_ids(
    directory: Path, vocabulary: Sequence[str], never_emitted_ids: Sequence[int], previous: Mapping[str, int]
) -> None:
    """Writes `token_ids.json` into `directory` if the vocabulary needs one, or an earlier version had one.

    :raises ArtifactError: if there are not enough ids.
    """
    if len(vocabulary) > MAX_TOKEN_IDS or previous:
        never = set(never_emitted_ids)
        emitted = [token for token_id, token in enumerate(vocabulary) if token_id not in never]
        table = assign_token_ids(emitted, previous)
        (directory / TOKEN_IDS).write_text(json.dumps(table, ensure_ascii=False) + "\n", encoding="utf-8")


def read_token_ids(directory: Path) -> dict[str, int]:
    """Token to id of the artifact in `directory`; empty if its ids serve as they are.

    :raises ArtifactError: if the file is no such table, or gives one id to two tokens or an id that is too large.
    """
    path = directory / TOKEN_IDS
    if not path.is_file():
        return {}
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        ids = list(table.values())
        wrong = [token_id for token_id in ids if type(token_id) is not int or not 0 <= token_id < MAX_TOKEN_IDS]
    except (ValueError, AttributeError) as error:
        raise ArtifactError(f"{path} is no table of token ids ({error}): publish the model again") from error
    if wrong or len(set(ids)) != len(ids):
        raise ArtifactError(f"{path} must give each token an id of its own below {MAX_TOKEN_IDS:,}: publish it again")
    return dict(table)
