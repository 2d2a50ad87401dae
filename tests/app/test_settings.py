from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import SecretStr, ValidationError
from pydantic_settings import CliApp

from app.settings import Settings


def test_every_setting_has_a_flag_an_environment_variable_and_a_sentence_of_help(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        CliApp.run(Settings, cli_args=["--help"])
    assert stop.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for name, field in Settings.model_fields.items():
        assert f"--{name.replace('_', '-')}" in text
        assert field.description
        assert field.description in text
        assert field.description.endswith(".")


def test_flags_win_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSE_ENCODER_PORT", "9001")
    monkeypatch.setenv("SPARSE_ENCODER_MODEL", "/models/a")
    assert CliApp.run(Settings, cli_args=[]).port == 9001
    settings = CliApp.run(Settings, cli_args=["--port", "9002"])
    assert (settings.port, settings.model) == (9002, "/models/a")


def test_the_settings_stay_few() -> None:
    assert set(Settings.model_fields) == {
        "model",
        "max_length_document",
        "max_length_query",
        "cache_dir",
        "store",
        "alias",
        "poll_seconds",
        "max_resident_versions",
        "allow_vocabulary_change",
        "canary_min_active_tokens",
        "canary_max_active_tokens",
        "canary_min_overlap",
        "api_keys",
        "api_keys_file",
        "admin_key",
        "host",
        "port",
        "ssl_certfile",
        "ssl_keyfile",
        "cors_origins",
        "client_timeout_seconds",
        "device",
        "precision",
        "encoder_threads",
        "max_batch_tokens",
        "query_cache_size",
        "max_texts_per_request",
        "max_body_bytes",
        "max_characters_per_text",
        "max_texts_in_flight",
        "request_timeout_seconds",
        "top_k_document",
        "top_k_query",
        "long_texts",
        "max_windows",
        "dotted_tokens",
        "drain_seconds",
        "shutdown_grace_seconds",
        "otlp_endpoint",
        "log_texts",
        "log_level",
    }


def test_a_request_that_could_never_be_accepted_is_refused_at_the_start() -> None:
    with pytest.raises(ValidationError, match="could never be accepted"):
        Settings(max_texts_per_request=100, max_texts_in_flight=99)


def test_a_model_and_a_store_are_not_both_served() -> None:
    with pytest.raises(ValidationError, match="give one of them"):
        Settings(model="model", store="models")


def test_lengths_of_a_store_are_those_of_its_versions() -> None:
    with pytest.raises(ValidationError, match="versions of a store say their own lengths"):
        Settings(store="models", max_length_query=10)


def test_tls_needs_certificate_and_key() -> None:
    with pytest.raises(ValidationError, match="needs both ssl_certfile and ssl_keyfile"):
        Settings(ssl_certfile=Path("cert.pem"))


def test_the_admin_key_is_never_shown() -> None:
    assert "secret" not in repr(Settings(admin_key=SecretStr("secret")))
