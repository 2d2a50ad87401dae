from __future__ import annotations

import hashlib
import sys
import traceback
from pathlib import Path

import httpx
import pytest
from pydantic import SecretStr, ValidationError
from pydantic_settings import CliApp, SettingsError

from app.__main__ import main
from app.main import create_app
from app.settings import Settings, complaint


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
        "query_model",
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
        "admin_key_file",
        "host",
        "port",
        "ssl_certfile",
        "ssl_keyfile",
        "cors_origins",
        "trusted_proxies",
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
        "longest_run_seconds",
        "max_windows",
        "dotted_tokens",
        "drain_seconds",
        "shutdown_grace_seconds",
        "playground",
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


def test_tls_needs_certificate_and_key(tmp_path: Path) -> None:
    (tmp_path / "cert.pem").touch()
    with pytest.raises(ValidationError, match="needs both ssl_certfile and ssl_keyfile"):
        Settings(ssl_certfile=tmp_path / "cert.pem")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--host="], "host: an empty host would mean every address: 0.0.0.0 says so (got '')"),
        (["--host= "], "host: an empty host would mean every address"),
        (["--store="], "store: String should have at least 1 character (got '')"),
        (["--alias="], "alias: String should have at least 1 character"),
        (["--drain-seconds", "-1"], "drain_seconds: Input should be greater than or equal to 0 (got '-1')"),
        (["--request-timeout-seconds", "inf"], "request_timeout_seconds: Input should be a finite number (got 'inf')"),
        (["--poll-seconds", "nan"], "poll_seconds: Input should be a finite number (got 'nan')"),
        (["--client-timeout-seconds", "0"], "client_timeout_seconds: Input should be greater than 0 (got '0')"),
        (["--canary-min-overlap", "nan"], "canary_min_overlap: Input should be a finite number"),
        (
            ["--canary-min-active-tokens", "9", "--canary-max-active-tokens", "3"],
            "9 exceeds canary_max_active_tokens 3",
        ),
        (["--otlp-endpoint", "collector:4318"], "otlp_endpoint: expected a URL, such as http://collector:4318"),
        (["--otlp-endpoint="], "otlp_endpoint: expected a URL"),
        (["--ssl-certfile", "/no.pem", "--ssl-keyfile", "/no.key"], "ssl_certfile: there is no file /no.pem"),
        (["--api-keys-file", "/no/keys"], "api_keys_file: there is no file /no/keys"),
        (["--trusted-proxies", "10.0.0.0/8,lb"], "trusted_proxies: 'lb' is no address or network, such as 10.0.0.0/8"),
        (["--trusted-proxies", "*"], "trusted_proxies: '*' is no address or network"),
        (["--cors-origins", "a.example"], "cors_origins: 'a.example' is no origin, such as https://a.example"),
        (["--cors-origins", "https://a.example/"], "is no origin"),
        (["--admin-key="], "admin_key: an empty key would let everybody in"),
        (["--no-such-flag", "1"], "unknown or incomplete flag --no-such-flag"),
    ],
)
def test_what_cannot_work_is_refused_with_setting_value_and_reason(flags: list[str], said: str) -> None:
    with pytest.raises((ValidationError, SettingsError)) as refusal:
        CliApp.run(Settings, cli_args=flags)
    error: BaseException = refusal.value
    assert isinstance(error, ValidationError | SettingsError)
    assert said in complaint(error)


KEYS = {"SPARSE_ENCODER_ADMIN_KEY": "s3cret-admin", "SPARSE_ENCODER_API_KEYS": "s3cret-client"}


@pytest.mark.parametrize(
    "flags",
    [
        ["--model", "a", "--store", "b"],  # an error of several settings has all of them for its input
        ["--max-texts-per-request", "9999"],
        ["--canary-min-active-tokens", "9", "--canary-max-active-tokens", "3"],
        ["--port", "70000"],
        ["--admin-keyy", "s3cret-admin"],
        ["--admin-key", "s3cret-admin", "--admin-key-file", __file__],
        ["--admin-key", "--port", "s3cret-admin"],
        ["s3cret-admin"],
        [],  # the API keys are no entries
    ],
)
@pytest.mark.parametrize("factory", [False, True])
def test_a_refusal_never_shows_a_key(factory: bool, flags: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """By `python -m app`, and by a server of one's own, which has no flags."""
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    if factory:
        for flag, value in zip(flags[::2], flags[1::2], strict=False):
            monkeypatch.setenv(f"SPARSE_ENCODER_{flag[2:].replace('-', '_').upper()}", value)
    monkeypatch.setattr(sys, "argv", ["app", *([] if factory else flags)])
    with pytest.raises(SystemExit) as stop:
        create_app() if factory else main()
    said = str(stop.value) + "".join(traceback.format_exception(stop.value))
    assert "wrong settings" in said
    assert "s3cret" not in said


async def test_keys_stay_secret_until_they_are_compared(
    settings: Settings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "admin").write_text("s3cret-admin\n")
    entry = f"search:{hashlib.sha256(b's3cret-client').hexdigest()}"
    chosen = settings.model_copy(update={"api_keys": SecretStr(entry), "admin_key_file": tmp_path / "admin"})
    caplog.set_level("DEBUG")
    app = create_app(chosen)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://service") as client,
    ):
        service = app.state.service
        answers = [
            await client.post(path, json=body, headers={b"Authorization": f"bearer {key}".encode()})
            for key in ("s3cret-admin", "s3cret-client", "s3cret-wrong", "s3cret-\u00e9")
            for path, body in (("/encode", ["가"]), ("/encode", {"s3": 1}), ("/admin/rollback", {"alias": "stable"}))
        ]
        assert {answer.status_code for answer in answers} == {200, 401, 409, 422}  # 409: there is no store
    said = "".join([*(answer.text for answer in answers), caplog.text, repr(chosen), repr(service), str(vars(app))])
    assert "s3cret" not in said
    assert entry not in said
