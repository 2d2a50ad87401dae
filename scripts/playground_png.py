"""The pictures of the playground in the documentation, by the embedded model in Debian's Chromium.

    python -m scripts.playground_png docs               writes docs/playground.png and docs/playground-words.png
    python -m scripts.playground_png DIRECTORY --all    both tabs at 1280 and 390 pixels, light and dark, to look at

Needs playwright, chromium and fonts-nanum (Debian's packages).
"""

from __future__ import annotations

import argparse
import itertools
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

from PIL import Image
from playwright.sync_api import Browser, sync_playwright

from tests.app.server import running

Scheme = Literal["light", "dark"]

WIDTHS = (1280, 390)
SCHEMES: Sequence[Scheme] = get_args(Scheme)
#: By tab: what is there once the answers are.
TABS = {"words": "#results .word", "search": "#ranking .score"}


def shot(browser: Browser, url: str, tab: str, target: Path, width: int, scheme: Scheme) -> None:
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, locale="en")
    page = context.new_page()
    page.goto(url)
    page.locator(f"#tab-{tab}").click()
    page.locator(TABS[tab]).first.wait_for()
    page.wait_for_load_state("networkidle")
    page.screenshot(path=target, full_page=True)
    context.close()
    Image.open(target).quantize(128).save(target, optimize=True)  # a third of the size


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m scripts.playground_png", description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--all", action="store_true", help="every width and colour scheme")
    options = parser.parse_args()
    pictures: list[tuple[str, str, int, Scheme]] = [
        ("playground.png", "search", 1280, "light"),
        ("playground-words.png", "words", 1280, "light"),
    ]
    if options.all:
        every = itertools.product(TABS, WIDTHS, SCHEMES)
        pictures = [(f"{tab}-{width}-{scheme}.png", tab, width, scheme) for tab, width, scheme in every]
    with (
        running("-m", "app", "--port=0") as service,
        sync_playwright() as playwright,
        playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"]) as browser,
    ):
        for name, tab, width, scheme in pictures:
            shot(browser, service.url, tab, options.directory / name, width, scheme)


if __name__ == "__main__":
    main()
