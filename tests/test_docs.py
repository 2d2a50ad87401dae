"""The documentation: it builds with every link in place, asks nothing of other hosts, and names commands that exist."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.figures import FIGURES, pages, quoted, with_figures
from scripts.reference import COMMANDS, recipe_page, write_reference

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
_BLOCK = re.compile(r"^```bash\n(.*?)^```", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)#\s]+)(#[^)\s]*)?\)")
_REMOTE = re.compile(r"""<(?:script|link|img)\b[^>]*?\b(?:src|href)=["'](?:https?:)?//""")


def shell_lines(page: Path) -> list[str]:
    blocks = _BLOCK.findall(page.read_text(encoding="utf-8"))
    return [line for block in blocks for line in block.replace("\\\n", " ").splitlines() if line.strip()]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The documentation of a copy, built as `make docs` does."""
    copy = tmp_path_factory.mktemp("site")
    shutil.copytree(ROOT / "docs", copy / "docs")
    shutil.copy(ROOT / "zensical.toml", copy)
    write_reference(copy / "docs" / "reference")
    return copy


def build(site: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "zensical", "build", "--clean", "--strict"]
    return subprocess.run(command, cwd=site, capture_output=True, text=True, check=False, timeout=120)


@pytest.mark.slow
@pytest.mark.timeout(300)  # each command is asked for its help
def test_the_site_builds_and_every_link_leads_somewhere(site: Path) -> None:
    done = build(site)
    assert done.returncode == 0, done.stdout + done.stderr
    built = sorted((site / "build" / "site").rglob("*.html"))
    missing = [page for page in (site / "docs").rglob("*.md") if not _built(site, page).is_file()]
    assert missing == []
    asking = {page.name: _REMOTE.findall(page.read_text(encoding="utf-8")) for page in built}
    assert {name: found for name, found in asking.items() if found} == {}

    broken = site / "docs" / "quickstart.md"
    broken.write_text(broken.read_text(encoding="utf-8") + "\n[gone](opensearch/gone.md)\n", encoding="utf-8")
    assert build(site).returncode != 0


def _built(site: Path, page: Path) -> Path:
    return (site / "build" / "site" / page.relative_to(site / "docs")).with_suffix(".html")


@pytest.mark.parametrize("page", [ROOT / "README.md"], ids=["README"])
def test_the_links_of_pages_outside_of_the_site_lead_somewhere(page: Path) -> None:
    targets = [target for target, _ in _LINK.findall(page.read_text(encoding="utf-8")) if "://" not in target]
    assert [target for target in targets if not (page.parent / target).exists()] == []


def test_the_guides_name_commands_and_make_targets_that_exist() -> None:
    """What a line may say after `python -m NAME` is asked of the command's own parser elsewhere."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    known = {command[0] for command in COMMANDS}
    wrong = []
    for page in PAGES:
        for line in shell_lines(page):
            words = line.split("#")[0].split()
            if words[:1] == ["make"] and words[1:] and words[1] not in targets:
                wrong.append((page.name, line))
            for place, word in enumerate(words):
                if word == "-m" and "python" in words[place - 1]:
                    module = words[place + 1]
                    path = ROOT / module.replace(".", "/")
                    if (
                        module not in known
                        and module != "venv"
                        and not (path.is_dir() or path.with_suffix(".py").is_file())
                    ):
                        wrong.append((page.name, line))
    assert wrong == []


@pytest.mark.parametrize("page", pages(ROOT), ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_quotes_the_figures_that_were_measured(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert with_figures(ROOT, text) == text, "the source says something else: python -m scripts.figures"


def test_figures_say_of_what_model_when_and_how_they_were_measured_and_are_quoted() -> None:
    in_use = {name for page in pages(ROOT) for name in quoted(page.read_text(encoding="utf-8"))}
    for file in (file for directory in FIGURES for file in (ROOT / directory).glob("*.md")):
        *_, caption = file.read_text(encoding="utf-8").splitlines()
        of_benchmark = r"ko-\S+, \d{4}-\d\d-\d\d, \d+ cores \(.+\), `python -m benchmarks\.\w+.*`\."
        assert re.fullmatch(of_benchmark + r"|\d{4}-\d\d-\d\d, `make versions-table`\.", caption), file
        assert file.stem in in_use, f"no page quotes {file}"


def test_a_page_follows_its_figures(tmp_path: Path) -> None:
    (tmp_path / FIGURES[0]).mkdir(parents=True)
    (tmp_path / FIGURES[0] / "start.md").write_text("ready in 1.2 s\n", encoding="utf-8")
    page = "# Speed\n\n<!-- figures: start -->\nready in 1.1 s\n<!-- end -->\nMore.\n"
    new = "# Speed\n\n<!-- figures: start -->\n\nready in 1.2 s\n\n<!-- end -->\nMore.\n"
    assert with_figures(tmp_path, page) == new
    assert with_figures(tmp_path, new) == new
    with pytest.raises(ValueError, match=r"benchmarks/figures and tests/figures have no stop\.md \(there are start\)"):
        with_figures(tmp_path, page.replace("start", "stop"))
    (tmp_path / "app" / "embedded").mkdir(parents=True)
    (tmp_path / "app" / "embedded" / "README.md").write_text(
        "# ko\n\n## Use\n\nx\n\n## Examples\n\n- 손해\n\n## Figures\n\n| a |\n", encoding="utf-8"
    )
    for name, section in (("Examples", "- 손해"), ("Figures", "| a |")):
        quote = f"<!-- figures: card/{name} -->\n{{}}<!-- end -->\n"
        assert with_figures(tmp_path, quote.format("")) == quote.format(f"\n{section}\n\n")


def test_a_recipe_page_has_each_key_with_its_default_and_what_is_said_of_it() -> None:
    page = recipe_page(
        'class LossConfig(Section):\n    """The losses."""\n\n    contrastive: float = 1.0\n'
        "    #: How much\n    #: more.\n    margin: int = Field(default=2, ge=0)\n    name: str  #: of it | all\n"
    )
    assert "## LossConfig\n\nThe losses." in page
    assert "| `contrastive` | `float` | `1.0` |  |" in page
    assert "| `margin` | `int` | `2` | How much more. |" in page
    assert "| `name` | `str` |  | of it \\| all |" in page
