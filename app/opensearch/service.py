"""What can be found out about the service from here."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

from app.opensearch.cluster import trusting
from app.opensearch.facts import OpenSearchError
from app.opensearch.plan import ServiceFacts


class EncoderService:
    """The service at an address that the cluster's nodes know, and perhaps this machine."""

    def __init__(
        self, url: str, api_key: str | None = None, timeout_seconds: float = 60.0, ca_file: Path | None = None
    ) -> None:
        """`ca_file`: certificates to trust instead of the system's.

        :raises OpenSearchError: if `ca_file` cannot be read.
        """
        self.url = url.rstrip("/")
        self._context = trusting(ca_file)
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._timeout_seconds = timeout_seconds

    def info(self) -> Mapping[str, Any] | None:
        """The answer of `GET /info`; None if the address cannot be reached from here.

        :raises OpenSearchError: if something else answers there, or its certificate is not trusted.
        """
        try:
            answer = httpx.get(f"{self.url}/info", headers=self._headers, timeout=5.0, verify=self._context)
        except httpx.HTTPError as error:
            if "CERTIFICATE_VERIFY_FAILED" in str(error):
                raise OpenSearchError(
                    f"the certificate of {self.url} is not trusted here ({error}): give its authority with "
                    "--encoder-ca-file; the nodes must trust it as well"
                ) from error
            return None
        if answer.status_code == httpx.codes.UNAUTHORIZED:
            raise OpenSearchError(f"{self.url} wants an API key, another than this: give it with --api-key-file")
        try:
            document: Mapping[str, Any] = answer.json()
            _ = document["model"]["version"], document["model"]["max_length_document"]
            _ = [
                document["limits"][name]
                for name in ("max_texts_per_request", "request_timeout_seconds", "max_characters_per_text")
            ]
        except (ValueError, KeyError, TypeError) as error:
            raise self._stranger("/info", answer) from error
        return document

    def encode(self, texts: Sequence[str], **fields: object) -> list[dict[str, float]]:
        """:raises OpenSearchError: if the service refuses, does not answer, or is none."""
        answer = self._post("/encode", texts=texts, **fields)
        try:
            vectors: list[dict[str, float]] = answer.json()
            if not isinstance(vectors, list) or len(vectors) != len(texts):
                raise ValueError("no vector for each text")
        except ValueError as error:
            raise self._stranger("/encode", answer) from error
        return vectors

    def explain(self, **fields: object) -> Mapping[str, Any]:
        """The answer of `POST /explain`.

        :raises OpenSearchError: if the service refuses, does not answer, or is none.
        """
        answer = self._post("/explain", **fields)
        try:
            document: Mapping[str, Any] = answer.json()
            _ = document["query"], document["texts"]
        except (ValueError, KeyError, TypeError) as error:
            raise self._stranger("/explain", answer) from error
        return document

    def _post(self, path: str, **fields: object) -> httpx.Response:
        try:
            answer = httpx.post(
                f"{self.url}{path}",
                json=fields,
                headers=self._headers,
                timeout=self._timeout_seconds,
                verify=self._context,
            )
        except httpx.HTTPError as error:
            raise OpenSearchError(f"{self.url} does not answer ({error!r}): does the service run there?") from error
        if not answer.is_success:
            raise OpenSearchError(f"{self.url}{path} answers {answer.status_code}: {answer.text}")
        return answer

    def _stranger(self, path: str, answer: httpx.Response) -> OpenSearchError:
        return OpenSearchError(
            f"{self.url}{path} answers {answer.status_code}, but not as the service does: is --encoder right?"
        )

    def version_of(self, name: str | None) -> str | None:
        """The version that encodes for a connector that asks for `name`, a version or an alias, or for none.

        None if the address cannot be reached from here.

        :raises OpenSearchError: if the service has no such version.
        """
        info = self.info()
        if info is None:
            return None
        if name is None:
            return str(info["model"]["version"])
        return str(self._post("/encode", texts=["버전"], version=name).headers["X-Model-Version"])

    def describe(self, model_version: str | None = None) -> ServiceFacts:
        """What a plan needs to know; of a service that cannot be reached from here, its defaults.

        `model_version`: version or alias that the connectors will ask for.
        """
        info = self.info()
        private = is_private(urlsplit(self.url).hostname or "")
        if info is None:
            return ServiceFacts(private_address=private)
        return ServiceFacts(
            private_address=private,
            max_texts_per_request=info["limits"]["max_texts_per_request"],
            request_timeout_seconds=info["limits"]["request_timeout_seconds"],
            max_length_document=info["model"]["max_length_document"],
            max_characters_per_text=info["limits"]["max_characters_per_text"],
            model_version=self.version_of(model_version),
        )


def is_private(host: str) -> bool:
    """Whether a node would take `host` for a private address; so are taken names that only the cluster knows."""
    try:
        addresses = {info[4][0] for info in socket.getaddrinfo(host, None)}
    except OSError:
        return True
    return any(not ipaddress.ip_address(str(address).split("%")[0]).is_global for address in addresses)
