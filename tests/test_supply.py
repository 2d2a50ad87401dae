"""What is shipped comes from files whose hashes are known, and each version stands in one place."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from scripts.audit import NONE, SOME, UNKNOWN, verdict
from scripts.wheelhouse import hashed_pins, normalised, requirements

ROOT = Path(__file__).parent.parent
PROJECT = "sparse-encoder-service"
#: The extras whose packages each file has, as `make lock` makes it.
EXTRAS = dict(
    re.findall(r"hashes/(\w+)\.txt \$\(addprefix --extra ,([\w ]+)\)", (ROOT / "Makefile").read_text("utf-8"))
)


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    found = dict(line.split("==") for line in lines if not line.startswith("#"))
    return {normalised(name): version for name, version in found.items()}


def hashed(name: str) -> dict[str, str]:
    return hashed_pins((ROOT / "hashes" / f"{name}.txt").read_text(encoding="utf-8"))


def installed(extras: Iterable[str]) -> set[str]:
    """What the project needs here with these extras, by the metadata of what is installed."""
    found: set[str] = set()
    waiting = [(PROJECT, extra) for extra in ("", *extras)]
    while waiting:
        name, extra = waiting.pop()
        for line in metadata.requires(name) or ():
            requirement = Requirement(line)
            if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
                continue
            below = normalised(requirement.name)
            waiting += [(below, of) for of in ("", *requirement.extras) if below not in found or of]
            found.add(below)
    return found - {PROJECT}


@pytest.mark.parametrize("name", EXTRAS)
def test_hashes_are_those_of_the_versions_in_the_constraints(name: str) -> None:
    known, lines = pins(), hashed(name)
    assert lines
    assert {package: text.split("==")[1].split()[0] for package, text in lines.items()} == {
        package: known.get(package) for package in lines
    }
    assert all(re.search(r"--hash=sha256:[0-9a-f]{64}$", text) for text in lines.values())


@pytest.mark.parametrize("name", EXTRAS)
def test_every_package_that_an_extra_brings_has_hashes(name: str) -> None:
    extras = [extra for extra in EXTRAS[name].split() if extra != "supply"]  # which the tests do without
    assert len(installed(extras)) > len(installed([])) > 20
    assert installed(extras) - set(hashed(name)) == set()


def test_every_extra_but_that_of_the_tests_is_in_a_file_of_hashes() -> None:
    declared = {normalised(extra) for extra in metadata.metadata(PROJECT).get_all("Provides-Extra") or ()}
    assert declared - {extra for extras in EXTRAS.values() for extra in extras.split()} == {"dev"}


@pytest.mark.parametrize("file", ["constraints.txt", *(f"hashes/{name}.txt" for name in EXTRAS)])
def test_no_file_says_where_packages_come_from(file: str) -> None:
    assert not re.search(r"://|--(extra-)?index|--find-links", (ROOT / file).read_text(encoding="utf-8"))


def test_the_image_installs_nothing_without_a_hash() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    steps = [
        step for line in dockerfile.splitlines() for step in line.split("&&") if re.search(r"pip\b.* install ", step)
    ]
    assert len(steps) >= 3
    assert [step for step in steps if "--require-hashes" not in step] == []


def test_the_image_takes_its_lists_from_the_projects_files(tmp_path: Path) -> None:
    """By the commands of the Dockerfile, in its shell."""
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    (program,) = re.findall(r"^RUN (echo .* > needed\.py)$", dockerfile, re.MULTILINE)
    (own_pip,) = re.findall(r"(sed -n .* > pip\.txt)", dockerfile)
    for name in ("pyproject.toml", "hashes"):
        (tmp_path / name).symlink_to(ROOT / name)
    subprocess.run(["sh", "-ec", f"{program}; {own_pip}"], cwd=tmp_path, check=True)
    command = [sys.executable, "needed.py", "s3", "otel"]
    said = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stdout
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    assert said.splitlines() == [*project["dependencies"], *extras["s3"], *extras["otel"]]
    assert (
        (tmp_path / "pip.txt")
        .read_text(encoding="utf-8")
        .rstrip("\n")
        .endswith(hashed("service")["pip"].splitlines()[-1])
    )
    assert list(hashed_pins((tmp_path / "pip.txt").read_text(encoding="utf-8"))) == ["pip"]


CLEAN = {"name": "a", "version": "1", "vulns": []}
HOLE = {"id": "PYSEC-2026-1", "fix_versions": ["2.0.1"], "aliases": [], "description": "x"}


@pytest.mark.parametrize(
    ("packages", "errors", "code", "said"),
    [
        ([CLEAN], "", NONE, "1 packages audited, 0 known"),
        ([CLEAN, {**CLEAN, "vulns": [HOLE]}], "", SOME, "a 1: PYSEC-2026-1, mended in 2.0.1\n2 packages"),
        (None, "Traceback\nConnectionError: no name", UNKNOWN, "OSV.*ConnectionError: no name"),
        (None, "", UNKNOWN, "it said nothing"),
        ([], "", UNKNOWN, "no package was looked up"),
        ([{"name": "a", "skip_reason": "not found"}], "", UNKNOWN, "a: not audited, not found"),
    ],
)
def test_an_audit_that_did_not_happen_is_not_a_clean_one(
    packages: list[object] | None, errors: str, code: int, said: str
) -> None:
    got, text = verdict("" if packages is None else json.dumps({"dependencies": packages}), errors)
    assert got == code
    assert re.search(said, text, re.DOTALL)


def test_the_list_of_a_wheelhouse_pins_each_wheel_that_is_in_it(tmp_path: Path) -> None:
    (tmp_path / "some_package-1.2-py3-none-any.whl").write_bytes(b"wheel")
    (tmp_path / "other-3-cp311-cp311-manylinux_2_28_x86_64.whl").write_bytes(b"")
    first, second = requirements(tmp_path).splitlines()
    assert first.startswith("other==3 --hash=sha256:e3b0c442")
    assert re.fullmatch(r"some_package==1\.2 --hash=sha256:[0-9a-f]{64}", second)
