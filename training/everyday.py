"""What a person sees who types everyday words: queries with their own, related and look-alike words, and figures."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from training.config import Config
from training.readers import DataError, read_jsonl

OWN_TOP = 20  #: heaviest tokens among which own words must be, and look-alikes must not
RELATED_TOP = 15  #: heaviest tokens that are no own word, among which related ones are looked for
DEPTH = 64  #: tokens of each query that are needed

_SYLLABLE = re.compile("[가-힣]")


@dataclass(frozen=True, slots=True)
class EverydayQuery:
    query: str
    own: tuple[frozenset[str], ...]  #: for each word of the query the tokens that hold it whole; one of them is enough
    related: frozenset[str]
    noise: frozenset[str]  #: look-alikes: they share syllables with the query and nothing else
    domain: str

    @property
    def own_words(self) -> frozenset[str]:
        return frozenset().union(*self.own)


@dataclass(frozen=True, slots=True)
class Shown:
    """What a model makes of a query."""

    words: Sequence[str]  #: its `DEPTH` heaviest tokens, as they are written in the vocabulary
    spoken: frozenset[str] = frozenset()  #: what the tokens of the query are emitted as
    table: frozenset[str] | None = None  #: what the model's table names for these; None: it has no table

    @property
    def top(self) -> list[str]:
        return [written(word) for word in self.words]


def written(token: str) -> str:
    """A token without the mark of a piece that goes on, in lower case."""
    return token.removeprefix("##").lower()


def load_everyday(config: Config) -> list[EverydayQuery]:
    """The queries of the recipe's files. Raises ``DataError`` with the line of one that is wrong."""
    return [query for path in config.data.everyday for query in read_everyday(config, path)]


def read_everyday(config: Config, path: str) -> list[EverydayQuery]:
    place = config.data_path(path)
    queries = []
    rows = read_jsonl(place, "query", "own", "related", "noise")
    for number, row in enumerate(rows, 1):
        lists = [*row["own"], row["related"], row["noise"]] if isinstance(row["own"], list) else [None]
        if not row["own"] or not all(_is_words(words) for words in lists):
            raise DataError(
                f"{place}: row {number}: own must be lists of words, one list for each word of the query; related and "
                f"noise a list of words; found {row!r:.120}"
            )
        own, related, noise = row["own"], row["related"], row["noise"]
        words = [frozenset(map(written, part)) for part in (*own, related, noise)]
        queries.append(EverydayQuery(str(row["query"]), tuple(words[:-2]), words[-2], words[-1], row.get("domain", "")))
    return queries


def _is_words(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(word, str) for word in value)


def everyday_figures(queries: Sequence[EverydayQuery], shown: Sequence[Shown]) -> dict[str, float]:
    """Shares of the queries (0 to 1). ``own``: each own word is whole among the ``OWN_TOP`` heaviest tokens.
    ``two_related`` and ``three_related``: so many related words are among the ``RELATED_TOP`` heaviest that are no own
    word. ``no_look_alike``: none of those listed is among the ``OWN_TOP``. ``all``: own, three and none.

    ``look_alike_rate``, for a model with a table: of the ``RELATED_TOP`` tokens that no token of the query is emitted
    as, the share that has a syllable of an own word and is not named by the table.
    """
    own = two = three = clean = together = expansions = look_alikes = 0
    for query, result in zip(queries, shown, strict=True):
        top = result.top
        whole = all(any(word in top[:OWN_TOP] for word in words) for words in query.own)
        expanded = [word for word in top if word not in query.own_words][:RELATED_TOP]
        hits = sum(word in query.related for word in expanded)
        none = not query.noise & set(top[:OWN_TOP])
        own += whole
        two += hits >= 2
        three += hits >= 3
        clean += none
        together += whole and hits >= 3 and none
        if result.table is not None:
            added = [word for word in top if word not in query.own_words | result.spoken][:RELATED_TOP]
            syllables = _syllables(query.own_words | result.spoken)
            expansions += len(added)
            look_alikes += sum(bool(_syllables([word]) & syllables) and word not in result.table for word in added)
    count = len(queries)
    figures = {
        "queries": count,
        "own": own / count,
        "two_related": two / count,
        "three_related": three / count,
        "no_look_alike": clean / count,
        "all": together / count,
    }
    if all(result.table is not None for result in shown):
        figures["look_alike_rate"] = look_alikes / max(1, expansions)
    return figures


def by_domain(queries: Sequence[EverydayQuery], shown: Sequence[Shown]) -> dict[str, dict[str, float]]:
    """``everyday_figures`` of each domain, in the order of the queries."""
    domains: dict[str, list[int]] = {}
    for place, query in enumerate(queries):
        domains.setdefault(query.domain, []).append(place)
    return {
        name: everyday_figures([queries[place] for place in places], [shown[place] for place in places])
        for name, places in domains.items()
        if name
    }


def _syllables(words: Iterable[str]) -> set[str]:
    return {syllable for word in words for syllable in _SYLLABLE.findall(word)}
