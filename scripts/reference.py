"""``python -m scripts.reference DIRECTORY``: the reference pages of the documentation, made of the code."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from app.main import create_app
from app.metrics import Metrics
from app.settings import Settings

ROOT = Path(__file__).parent.parent
COMMANDS = (
    ("app",),
    ("app.access",),
    ("app.bulk", "encode"),
    *(
        ("app.opensearch", name)
        for name in ("setup", "check", "explain", "reindex", "ids", "teardown", "export-tokenizer")
    ),
    *(("sparse_encoder", name) for name in ("inspect", "convert", "store", "related")),
    *(("training", name) for name in ("run", "vocab", "train", "evaluate", "publish")),
)
_WIDTH = "100"  #: of what a command prints about itself


def write_reference(directory: Path) -> None:
    pages = {
        "http": http_page(create_app(Settings()).openapi()),
        "settings": settings_page(),
        "metrics": metrics_page(),
        "commands": commands_page(),
        "recipe": recipe_page((ROOT / "training" / "config.py").read_text(encoding="utf-8")),
    }
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in pages.items():
        (directory / f"{name}.md").write_text(text, encoding="utf-8")


def http_page(schema: Mapping[str, Any]) -> str:
    parts = [
        "# HTTP",
        "What `/openapi.json` of a running service says, in short; `/docs` tries it out. Guide: "
        "[Call it over HTTP](../serving/http.md).",
    ]
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            parts.append(f"## {method.upper()} {path}")
            parts.append(operation.get("summary", ""))
            parts.append(operation.get("description", ""))
            parts += [
                _table(("field", "type", "default", ""), _fields(body)) for body in _bodies(operation) if _fields(body)
            ]
            answers = operation.get("responses", {})
            parts.append(_table(("status", "answer"), [(code, row["description"]) for code, row in answers.items()]))
    return "\n\n".join(filter(None, parts)) + "\n"


def settings_page() -> str:
    rows = []
    for name, field in Settings.model_fields.items():
        default = "" if field.default is None else str(field.default)
        flag, variable = f"--{name.replace('_', '-')}", f"SPARSE_ENCODER_{name.upper()}"
        rows.append((f"`{flag}`<br>`{variable}`", default and f"`{default}`", field.description or ""))
    return (
        "# Settings\n\nOf `python -m app`: each is a flag and an environment variable; a flag wins.\n\n"
        + _table(("setting", "default", ""), rows)
        + "\n"
    )


def metrics_page() -> str:
    rows = []
    for metric in Metrics().registry.collect():
        rows.append(
            (f"`{metric.name}{'_total' if metric.type == 'counter' else ''}`", metric.type, metric.documentation)
        )
    return (
        "# Metrics\n\nOf `GET /metrics`. Guide: [Watch it](../serving/watch.md).\n\n"
        + _table(("name", "kind", ""), rows)
        + "\n"
    )


def commands_page() -> str:
    parts = ["# Command lines", "What each command says with `--help`."]
    for module, *subcommand in COMMANDS:
        command = [sys.executable, "-m", module, *subcommand, "--help"]
        environment = {"COLUMNS": _WIDTH, "PATH": "/usr/bin:/bin", "NO_COLOR": "1"}
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT, env=environment)
        parts.append(f"## python -m {' '.join((module, *subcommand))}\n\n```text\n{done.stdout.strip()}\n```")
    return "\n\n".join(parts) + "\n"


def recipe_page(source: str) -> str:
    """The sections of a recipe: each class of ``training.config`` with its keys, defaults and comments."""
    lines = source.splitlines()
    parts = ["# Recipe", "The keys of a recipe, by section. Guide: [Train](../training/run.md)."]
    for node in ast.parse(source).body:
        if not isinstance(node, ast.ClassDef) or "Section" not in {ast.unparse(base) for base in node.bases}:
            continue
        rows = [
            (f"`{key}`", f"`{kind}`", default and f"`{default}`", comment)
            for key, kind, default, comment in _keys(node, lines)
        ]
        if rows:
            parts += [f"## {node.name}", ast.get_docstring(node) or "", _table(("key", "type", "default", ""), rows)]
    return "\n\n".join(filter(None, parts)) + "\n"


def _keys(node: ast.ClassDef, lines: Sequence[str]) -> Iterator[tuple[str, str, str, str]]:
    for item in node.body:
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name) and item.target.id != "model_config":
            default = ast.unparse(item.value) if item.value else ""
            if isinstance(item.value, ast.Call):
                default = next((ast.unparse(k.value) for k in item.value.keywords if k.arg == "default"), "")
            yield item.target.id, ast.unparse(item.annotation), default, _comment(lines, item)


def _comment(lines: Sequence[str], item: ast.stmt) -> str:
    """What stands behind ``#:`` on its line, or on those above it."""
    _, mark, behind = lines[(item.end_lineno or item.lineno) - 1].partition("#:")
    if mark:
        return behind.strip()
    above: list[str] = []
    for line in reversed(lines[: item.lineno - 1]):
        if not line.strip().startswith("#:"):
            break
        above.insert(0, line.strip().removeprefix("#:").strip())
    return " ".join(above)


def _bodies(operation: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    content = operation.get("requestBody", {}).get("content", {})
    schema = content.get("application/json", {}).get("schema", {})
    return [schema, *schema.get("anyOf", [])]


def _fields(schema: Mapping[str, Any]) -> list[tuple[str, ...]]:
    return [
        (f"`{name}`", _kind(field), f"`{json.dumps(field['default'])}`" if "default" in field else "", _said(field))
        for name, field in schema.get("properties", {}).items()
    ]


def _kind(field: Mapping[str, Any]) -> str:
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    kinds = [part.get("type", "") for part in field.get("anyOf", [field])]
    return " or ".join(filter(None, kinds))


def _said(field: Mapping[str, Any]) -> str:
    return str(field.get("description", ""))


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    body = ["| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in row) + " |" for row in rows]
    if not body:
        return ""
    return "\n".join(["| " + " | ".join(head) + " |", "|" + "---|" * len(head), *body])


if __name__ == "__main__":
    write_reference(Path(sys.argv[1]))
