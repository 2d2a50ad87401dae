"""One OpenSearch cluster over HTTP: requests in, JSON out, and what can be found out about it."""

from __future__ import annotations

import json
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx

from app.opensearch.advice import explained
from app.opensearch.facts import Facts, OpenSearchError, parse_version

LONGEST_REASON = 600  #: characters; some quote a whole script
Body = Mapping[str, Any] | bytes | None


def trusting(ca_file: Path | None) -> ssl.SSLContext:
    """For connections to whoever these certificates (PEM) vouch for; without a file, those of the system.

    :raises OpenSearchError: if `ca_file` cannot be read.
    """
    try:
        return ssl.create_default_context(cafile=ca_file)
    except OSError as error:
        raise OpenSearchError(f"{ca_file} holds no certificates ({error}): give a PEM file") from error


class RequestFailed(OpenSearchError):
    """The cluster answered with an error."""

    def __init__(self, method: str, path: str, status: int, reason: str) -> None:
        super().__init__(f"{method} {path}: {status} {explained(reason)}")
        self.status = status
        self.reason = reason


class Cluster:
    """A connection to a cluster; a context manager."""

    def __init__(
        self,
        url: str,
        *,
        auth: tuple[str, str] | None = None,
        ca_file: Path | None = None,
        insecure: bool = False,
        timeout_seconds: float = 60.0,
    ) -> None:
        """`ca_file`: certificates to trust instead of the system's; `insecure`: trust any.

        :raises OpenSearchError: if `ca_file` cannot be read.
        """
        context = trusting(ca_file)
        if insecure:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        self.url = url.rstrip("/")
        self._client = httpx.Client(base_url=self.url, auth=auth, verify=context, timeout=timeout_seconds)

    def __enter__(self) -> Cluster:
        """:raises OpenSearchError: if something else answers there."""
        try:
            self._version()
        except OpenSearchError:
            self._client.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def request(self, method: str, path: str, body: Body = None) -> Any:
        """The JSON of the answer; `bytes` are sent as they are (`_bulk`, model chunks).

        :raises RequestFailed: if the answer is an error.
        :raises OpenSearchError: if there is no answer.
        """
        content = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
        try:
            answer = self._client.request(method, path, content=content, headers={"Content-Type": "application/json"})
        except httpx.HTTPError as error:
            raise OpenSearchError(
                f"{self.url} does not answer ({error!r}): is the address right, does the node run, and does it speak "
                f"{'TLS with a certificate that is trusted here' if self.url.startswith('https') else 'plain HTTP'}?"
            ) from error
        if answer.is_success:
            try:
                return answer.json() if answer.content else {}
            except ValueError as error:
                raise OpenSearchError(
                    f"{method} {self.url}{path} was answered, but not with JSON ({answer.text[:80]!r}): give the "
                    "address of OpenSearch's HTTP port, usually 9200"
                ) from error
        raise RequestFailed(method, path, answer.status_code, _reason(answer))

    def find(self, path: str, body: Body = None) -> Any:
        """Like a GET (or with `body` a POST) by `request`, but None if there is no such thing."""
        try:
            return self.request("GET" if body is None else "POST", path, body)
        except RequestFailed as error:
            if error.status == 404:
                return None
            raise

    def facts(self) -> Facts:
        """:raises OpenSearchError: if this is no OpenSearch, or one that cannot do it."""
        version = self._version()
        nodes = self.request("GET", "/_nodes/plugins")["nodes"].values()
        settings = self.request("GET", "/_cluster/settings?include_defaults=true&flat_settings=true")
        return Facts(
            version=parse_version(version),
            plugins=frozenset.intersection(*(frozenset(p["name"] for p in node["plugins"]) for node in nodes)),
            has_ml_node=any("ml" in node["roles"] for node in nodes),
            settings={**settings["defaults"], **settings["persistent"], **settings["transient"]},
            persistent=settings["persistent"],
        )

    def _version(self) -> str:
        root = self.request("GET", "/")
        version = root.get("version") if isinstance(root, dict) else None
        if not isinstance(version, dict) or version.get("distribution") != "opensearch":
            raise OpenSearchError(f"{self.url} is not OpenSearch: give the address of its HTTP port, usually 9200")
        return str(version.get("number"))


def _reason(answer: httpx.Response) -> str:
    """What an error says, the innermost cause last."""
    try:
        error = answer.json()["error"]
    except (ValueError, KeyError, TypeError):
        if answer.headers.get("Content-Type", "").startswith("text/html"):
            return f"an HTML page, not OpenSearch's JSON: {answer.text[:200]!r}"
        return answer.text[:500]
    return error if isinstance(error, str) else error_text(error)


def error_text(error: Mapping[str, Any]) -> str:
    """An error object of OpenSearch as one line: `type: reason`, then its causes that say something new.

    What several shards say is a cause as well: without it, "all shards failed" says nothing.
    """
    parts: list[str] = []
    causes: list[Any] = [error]
    while causes:
        cause = causes.pop(0)
        if not isinstance(cause, Mapping):
            continue
        reason = str(cause.get("reason") or "")[:LONGEST_REASON]
        if reason and not any(reason in part for part in parts):
            parts.append(f"{cause.get('type')}: {reason}")
        failed = [shard.get("reason") for shard in cause.get("failed_shards") or () if isinstance(shard, Mapping)]
        causes += [cause.get("caused_by"), *failed, *(cause.get("root_cause") or ())]
    return "; caused by ".join(parts)
