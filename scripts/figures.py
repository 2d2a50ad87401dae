"""`python -m scripts.figures`: brings measured figures into the pages that quote them.

A page quotes between `<!-- figures: NAME -->` and `<!-- end -->` what `benchmarks/figures/NAME.md` holds, which the
command that measures it writes (`--figures` of a benchmark), with version, date and machine; or what tests write into
`tests/figures/NAME.md`. `card/SECTION` is a section of the embedded model's card. `tests/test_docs.py` fails where a
page says something else than its source.
"""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
CARD = Path("app/embedded/README.md")
FIGURES = (Path("benchmarks/figures"), Path("tests/figures"))
PAGES = ("README.md", "docs/**/*.md")
_QUOTE = re.compile(r"(<!-- figures: (\S+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def pages(root: Path) -> list[Path]:
    """All that may quote."""
    return sorted(page for pattern in PAGES for page in root.glob(pattern))


def quoted(page: str) -> list[str]:
    """Names of what `page` quotes."""
    return [name for _, name, _, _ in _QUOTE.findall(page)]


def source(root: Path, name: str) -> str:
    """:raises ValueError: if there are no such figures."""
    if name.startswith("card/"):
        heading = name.removeprefix("card/").replace("-", " ")
        card = (root / CARD).read_text(encoding="utf-8")
        if not (
            found := re.search(rf"^## {heading}\n(.*?)(?=^## |\Z)", card, re.MULTILINE | re.DOTALL | re.IGNORECASE)
        ):
            raise ValueError(f"{CARD} has no section {heading!r}")
        return found[1].strip()
    for directory in FIGURES:
        if (file := root / directory / f"{name}.md").is_file():
            return file.read_text(encoding="utf-8").strip()
    have = ", ".join(sorted(path.stem for directory in FIGURES for path in (root / directory).glob("*.md")))
    places = " and ".join(map(str, FIGURES))
    raise ValueError(f"{places} have no {name}.md (there are {have}): which command measures it?")


def with_figures(root: Path, page: str) -> str:
    """`page` with what its sources hold now.

    :raises ValueError: if it quotes what does not exist.
    """
    return _QUOTE.sub(lambda found: f"{found[1]}\n{source(root, found[2])}\n\n{found[4]}", page)


def main() -> None:
    for path in pages(ROOT):
        page = path.read_text(encoding="utf-8")
        if (new := with_figures(ROOT, page)) != page:
            path.write_text(new, encoding="utf-8")
            print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
