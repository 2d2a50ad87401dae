"""The structure of the code, checked: what the import contracts in pyproject.toml cannot say.

Change a rule here only with a reason that the review accepts.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGES = ("app", "sparse_encoder", "training")
TORCH = {"torch", "transformers", "sentence_transformers", "accelerate"}
# They import torch when they are imported; the service takes only the encoder of GPUs, and only where there is one.
TORCH_MODULES = {
    "sparse_encoder.model",
    "sparse_encoder.modeling_lexical_bert",
    "sparse_encoder.own_weights",
    "sparse_encoder.checkpoint.reference",
    "app.encoders.torch_encoder",
}
# Ray sets a variable when it is imported; only `app.bulk --address` takes it.
RAY_MODULES = {"app.bulk.on_ray"}
EMBEDDED = ROOT / "app" / "embedded"  # a published model; the code in it is for other software
MOST_LINES = 400


def modules(part: str) -> list[Path]:
    """The Python files of a package or module; fails if there are none, so that no rule lies idle."""
    path = ROOT / part
    found = sorted(path.rglob("*.py")) if path.is_dir() else [path] * path.exists()
    found = [file for file in found if file.parent != EMBEDDED]
    assert found, f"{part} is gone: update this file"
    return found


def sources() -> list[Path]:
    return [path for package in PACKAGES for path in modules(package)]


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imported(path: Path) -> set[str]:
    """What a module imports anywhere in it, also inside functions: "a.b" and, for `from a import b`, "a.b" too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name(path)} has a relative import in line {node.lineno}"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def imports_any(path: Path, forbidden: set[str]) -> list[str]:
    return sorted(i for i in imported(path) if any(i == f or i.startswith(f"{f}.") for f in forbidden))


def test_the_artifact_format_needs_the_standard_library_only() -> None:
    known = {
        f"sparse_encoder.{part}"
        for part in ("architectures", "disk", "fields", "layers", "older", "rotations", "typed_json")
    }
    for part in ("sparse_encoder/artifact.py", *(f"{module.replace('.', '/')}.py" for module in known)):
        (path,) = modules(part)
        others = {i for i in imported(path) if i.split(".")[0] not in sys.stdlib_module_names}
        assert {i for i in others if not any(i == k or i.startswith(f"{k}.") for k in known)} == set(), part


def test_nothing_imports_the_tests() -> None:
    assert [name(path) for path in sources() if imports_any(path, {"tests"})] == []


def test_the_environment_is_read_by_the_settings_only() -> None:
    readers = {name(path) for path in sources() if {"environ", "getenv"} & identifiers(path)}
    assert readers <= {"app/settings.py"}


def identifiers(path: Path) -> set[str]:
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    imported_names = {alias.name for node in nodes if isinstance(node, ast.ImportFrom) for alias in node.names}
    return imported_names | {node.attr for node in nodes if isinstance(node, ast.Attribute)}


def test_modules_stay_small() -> None:
    lines = {name(path): len(path.read_text(encoding="utf-8").splitlines()) for path in sources()}
    assert {path: count for path, count in lines.items() if count > MOST_LINES} == {}


IMPORT_AND_LOOK = """
import importlib, logging, os, signal, sys, threading

def state():
    return {
        "environment": dict(os.environ),
        "files": sorted(os.listdir()),
        "log handlers": list(logging.getLogger().handlers),
        "signal handlers": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)],
        "threads": threading.active_count(),
    }

before = state()
for module in sys.argv[1:]:
    importlib.import_module(module)
after = state()
changed = {key: (before[key], after[key]) for key in before if before[key] != after[key]}
assert not changed, changed
print(*(name for name, module in sys.modules.items() if module))
"""


def modules_loaded_by(*names: str) -> set[str]:
    """Imports `names` in a new process; fails if that changes the process or prints anything."""
    command = [sys.executable, "-W", "error", "-c", IMPORT_AND_LOOK, *names]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    (line,) = done.stdout.splitlines()
    return set(line.split())


def test_importing_the_service_does_nothing_and_loads_neither_torch_nor_telemetry() -> None:
    paths = (*modules("app"), *modules("sparse_encoder"))
    names = {name(path).removesuffix(".py").removesuffix("/__init__").replace("/", ".") for path in paths}
    assert names >= TORCH_MODULES | RAY_MODULES
    loaded = {module.split(".")[0] for module in modules_loaded_by(*sorted(names - TORCH_MODULES - RAY_MODULES))}
    assert loaded & {"training", "tests", "openvino_telemetry", "ray", *TORCH} == set()


def test_starting_the_service_loads_traces_and_stores_only_if_asked_for() -> None:
    assert {"opentelemetry.sdk", "s3fs"} & modules_loaded_by("app.__main__") == set()


def test_the_client_needs_nothing_of_the_service() -> None:
    loaded = {module.split(".")[0] for module in modules_loaded_by("app.client", "sparse_encoder.client")}
    assert loaded & {"fastapi", "numpy", "openvino", "prometheus_client", "pydantic", "tokenizers", "uvicorn"} == set()


def test_importing_the_training_package_does_nothing() -> None:
    assert "torch" not in modules_loaded_by("training")
