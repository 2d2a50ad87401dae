"""What `/` answers to a browser and to software."""

from __future__ import annotations

from app.settings import Settings
from tests.app.web.test_access import serving


async def test_without_the_playground_a_browser_gets_what_software_gets(settings: Settings) -> None:
    browser_asks = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
    async with serving(settings) as client:
        page = await client.get("/", headers=browser_asks)
        assert page.headers["content-type"].startswith("text/html")
        assert "script-src 'self'" in page.headers["content-security-policy"]
        assert "unsafe" not in page.headers["content-security-policy"]
        assert (await client.get("/")).json()["docs"] == "/docs"
    async with serving(settings, playground="off") as client:
        assert (await client.get("/", headers=browser_asks)).json()["docs"] == "/docs"
