"""All settings, from flags and from the environment (`SPARSE_ENCODER_PORT` is `--port`). Nothing else reads either."""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError


class Settings(BaseSettings):
    """Sparse text encoding over HTTP. Every flag is also an environment variable: --port is SPARSE_ENCODER_PORT."""

    model_config = SettingsConfigDict(
        env_prefix="SPARSE_ENCODER_",
        frozen=True,
        extra="forbid",
        cli_prog_name="python -m app",
        cli_kebab_case=True,
        cli_hide_none_type=True,
        cli_avoid_json=True,
        cli_implicit_flags=True,
        cli_exit_on_error=False,
        hide_input_in_errors=True,  # it may be a key
    )

    model: str | None = Field(
        default=None,
        min_length=1,
        description="Directory of a checkpoint, or owner/name or owner/name/folder on the hub, with @revision if you "
        "like; without it, the embedded model.",
    )
    query_model: str | None = Field(
        default=None,
        min_length=1,
        description="The checkpoint that encodes queries, where that is another one than --model; a Router says so "
        "itself.",
    )
    max_length_document: int | None = Field(
        default=None, ge=3, description="Tokens of a document, for a --model that is no artifact of this project."
    )
    max_length_query: int | None = Field(
        default=None, ge=3, description="Tokens of a query, for a --model that is no artifact of this project."
    )
    cache_dir: Path | None = Field(
        default=None,
        description="Directory for what is converted or downloaded; without it, the user's cache directory.",
    )
    store: str | None = Field(
        default=None,
        min_length=1,
        description="Directory or fsspec URL of published versions, instead of --model; watched.",
    )
    alias: str = Field(
        default="stable", min_length=1, description="Alias of the store that is served, whatever it comes to mean."
    )
    poll_seconds: float = Field(
        default=10.0, gt=0, allow_inf_nan=False, description="Seconds between two looks at the store."
    )
    max_resident_versions: int = Field(
        default=2, ge=1, description="Versions in memory, for requests that name one; one more while it is loaded."
    )
    allow_vocabulary_change: bool = Field(
        default=False, description="Serve a version with another tokenizer, which finds nothing in existing indexes."
    )
    canary_min_active_tokens: float = Field(
        default=2.0,
        ge=0,
        allow_inf_nan=False,
        description="Tokens of a golden vector on average; a version with fewer is refused.",
    )
    canary_max_active_tokens: float = Field(
        default=2000.0,
        gt=0,
        allow_inf_nan=False,
        description="Tokens of a golden vector on average; a version with more is refused.",
    )
    canary_min_overlap: float = Field(
        default=0.3,
        ge=0,
        le=1,
        allow_inf_nan=False,
        description="Share of ten heaviest words that a new version has in common with the one served, at least.",
    )
    api_keys: SecretStr = Field(
        default=SecretStr(""),
        description="Clients that may ask, NAME:SHA256 or NAME:SHA256:WEIGHT each (`python -m app.access NAME`); "
        "without, anybody.",
    )
    api_keys_file: Path | None = Field(
        default=None, description="File with more of them, one a line; read again when it changes."
    )
    admin_key: SecretStr | None = Field(
        default=None, description="Key of the /admin routes, sent as a bearer token; without one they are closed."
    )
    admin_key_file: Path | None = Field(default=None, description="File that holds the key of the /admin routes.")
    host: str = Field(
        default="127.0.0.1",
        description="Address to listen on; 0.0.0.0 to be reachable from other machines.",
    )
    port: int = Field(default=8080, ge=0, le=65535, description="TCP port to listen on; 0 takes a free one.")
    ssl_certfile: Path | None = Field(
        default=None, description="Certificate chain (PEM) for TLS; without it, plain HTTP."
    )
    ssl_keyfile: Path | None = Field(default=None, description="Private key (PEM) of the certificate.")
    cors_origins: str = Field(
        default="", description="Web origins whose pages may ask, separated by commas; * for all, empty for none."
    )
    playground: Literal["on", "off"] = Field(
        default="on", description="The page at / on which people try the model out, or none."
    )
    trusted_proxies: str = Field(
        default="",
        description="Addresses and networks whose X-Forwarded-For names the client, separated by commas; none by "
        "default, so that nobody passes for another.",
    )
    client_timeout_seconds: float = Field(
        default=60.0,
        gt=0,
        allow_inf_nan=False,
        description="Seconds that a client has for the headers of a request, again for its body, and again to read.",
    )
    encoder_threads: int = Field(
        default=0, ge=0, description="CPU threads of the encoder; 0 takes all cores that the container may use."
    )
    max_batch_tokens: int | None = Field(
        default=None,
        ge=1,
        description="Tokens of one encoder run, padding included; without it, measured at the start. A longer text "
        "goes alone.",
    )
    longest_run_seconds: float = Field(
        default=1.0,
        gt=0,
        allow_inf_nan=False,
        description="Seconds that a text may take in the encoder while queries wait: one that takes longer, or has "
        "more than 512 tokens, is encoded beside them, on a CPU with the weights in memory once more meanwhile.",
    )
    query_cache_size: int = Field(
        default=4096, ge=0, description="Recent queries whose vectors are kept; 0 computes every one again."
    )
    device: str = Field(
        default="auto",
        pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$",
        description="auto, cpu, cuda, cuda:N or mps; auto takes a GPU if torch (extra `torch`) finds one.",
    )
    precision: Literal["auto", "f32", "bf16", "f16", "int8", "int8-static"] = Field(
        default="auto",
        description="f32, bf16, f16 (GPU) or int8 (CPU); auto takes the fastest that costs no retrieval quality.",
    )
    max_texts_per_request: int = Field(
        default=1024, ge=1, description="Texts in one request; more is refused with 413."
    )
    max_body_bytes: int = Field(
        default=8_000_000, ge=1, description="Bytes of one request body; more is refused with 413."
    )
    max_characters_per_text: int = Field(
        default=1_000_000,
        ge=1,
        description="Characters of one text; more are cut off, or refused with 413 where the request says so.",
    )
    max_texts_in_flight: int = Field(
        default=4096, ge=1, description="Texts accepted and not yet answered; beyond it requests are refused with 429."
    )
    request_timeout_seconds: float = Field(
        default=60.0,
        gt=0,
        allow_inf_nan=False,
        description="Seconds after which a request that is not encoded yet is given up with 503.",
    )
    top_k_document: int = Field(
        default=256, ge=1, description="Tokens kept for a document, the heaviest ones, unless the request says top_k."
    )
    top_k_query: int = Field(
        default=64, ge=1, le=256, description="Tokens kept for a query, the heaviest, unless the request says top_k."
    )
    long_texts: Literal["cut", "windows"] = Field(
        default="cut",
        description="Documents longer than the model reads: cut off, or encoded in overlapping windows, unless the "
        "request says long_texts.",
    )
    max_windows: int = Field(
        default=32, ge=2, description="Windows of one document; what is beyond is cut off, or refused."
    )
    dotted_tokens: Literal["drop", "replace"] = Field(
        default="drop",
        description="Tokens with a dot, which OpenSearch takes for a path: leave out, or write with a look-alike.",
    )
    drain_seconds: float = Field(
        default=1.0,
        ge=0,
        allow_inf_nan=False,
        description="Seconds between SIGTERM (not ready any more) and the end of listening.",
    )
    shutdown_grace_seconds: int = Field(
        default=60, ge=1, description="Seconds that accepted requests have to finish once listening has ended."
    )
    otlp_endpoint: str | None = Field(
        default=None, description="OpenTelemetry collector for traces, such as http://collector:4318; extra otel."
    )
    log_texts: bool = Field(default=False, description="Write the texts of each request into the log.")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Least severe level logged."
    )

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        if self.max_texts_per_request > self.max_texts_in_flight:
            raise ValueError(
                f"max_texts_per_request {self.max_texts_per_request} exceeds max_texts_in_flight "
                f"{self.max_texts_in_flight}, so the largest request could never be accepted: raise the latter"
            )
        if self.model and self.store:
            raise ValueError("model and store both say what to serve: give one of them")
        if self.query_model and not self.model:
            raise ValueError("query_model goes with a model, which encodes the documents: give both, or neither")
        if bool(self.ssl_certfile) != bool(self.ssl_keyfile):
            raise ValueError("TLS needs both ssl_certfile and ssl_keyfile: give both or neither")
        if self.canary_min_active_tokens > self.canary_max_active_tokens:
            raise ValueError(
                f"canary_min_active_tokens {self.canary_min_active_tokens:g} exceeds canary_max_active_tokens "
                f"{self.canary_max_active_tokens:g}, so every version would be refused: lower the former"
            )
        if self.admin_key and self.admin_key_file:
            raise ValueError("admin_key and admin_key_file both say the key of the admin routes: give one of them")
        if self.store and (self.max_length_document or self.max_length_query):
            raise ValueError("the versions of a store say their own lengths: leave out those of documents and queries")
        return self

    @field_validator("ssl_certfile", "ssl_keyfile", "api_keys_file", "admin_key_file")
    @classmethod
    def _is_a_file(cls, path: Path | None) -> Path | None:
        if path and not path.is_file():
            raise ValueError(f"there is no file {path}")
        return path

    @field_validator("admin_key")
    @classmethod
    def _is_a_key(cls, key: SecretStr | None) -> SecretStr | None:
        if key is not None and not key.get_secret_value().strip():
            raise ValueError("an empty key would let everybody in: leave the setting out to close the admin routes")
        return key

    @field_validator("otlp_endpoint")
    @classmethod
    def _is_a_url(cls, endpoint: str | None) -> str | None:
        if endpoint is not None and not _is_web_address(endpoint):
            raise ValueError("expected a URL, such as http://collector:4318")
        return endpoint

    @field_validator("cors_origins")
    @classmethod
    def _are_origins(cls, origins: str) -> str:
        for origin in re.split(r"[\s,]+", origins.strip()) if origins.strip() else []:
            if origin != "*" and (not _is_web_address(origin) or urlsplit(origin).path):
                raise ValueError(f"{origin!r} is no origin, such as https://a.example (no path, no slash at the end)")
        return origins

    @field_validator("trusted_proxies")
    @classmethod
    def _are_addresses(cls, proxies: str) -> str:
        for proxy in filter(None, proxies.split(",")):
            try:
                ipaddress.ip_network(proxy.strip())
            except ValueError as error:
                raise ValueError(f"{proxy.strip()!r} is no address or network, such as 10.0.0.0/8: {error}") from None
        return proxies

    @field_validator("host")
    @classmethod
    def _is_a_host(cls, host: str) -> str:
        if not host.strip():
            raise ValueError("an empty host would mean every address: 0.0.0.0 says so")
        return host

    def the_admin_key(self) -> SecretStr | None:
        """From the setting or its file.

        :raises ValueError: if the file cannot be read or is empty.
        """
        if self.admin_key_file is None:
            return self.admin_key
        try:
            key = self.admin_key_file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"admin_key_file {self.admin_key_file} cannot be read: {type(error).__name__}") from None
        if not key:
            raise ValueError(f"admin_key_file {self.admin_key_file} is empty")
        return SecretStr(key)


def _is_web_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        return False


def complaint(error: ValidationError | SettingsError) -> str:
    """What is wrong with which setting, a line each, and never a key."""
    if isinstance(error, SettingsError):  # repeats what it does not know, values included
        flags = re.findall(r"--[\w-]+", str(error))
        return f"unknown or incomplete flag {', '.join(flags)}: --help lists all" if flags else "a flag cannot be read"
    return "\n".join(map(_complaint, error.errors(include_url=False)))


def _complaint(error: ErrorDetails) -> str:
    name = ".".join(map(str, error["loc"]))
    message = error["msg"].removeprefix("Value error, ")
    if not name:  # of several settings, which the message names
        return message
    given = "" if name in SECRETS else f" (got {error['input']!r})"
    return f"{name}: {message}{given}"


SECRETS = {name for name, field in Settings.model_fields.items() if "SecretStr" in str(field.annotation)}
