"""The pages for people: the playground at `/`, and `/docs`. Nothing on them comes from elsewhere."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, JSONResponse, Response
from fastapi.staticfiles import StaticFiles

from app import __version__

PAGES = Path(__file__).parent.parent / "pages"
#: What a page may load and do: its own files, and requests to this service; no text of it becomes a script.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": f"{POLICY}; require-trusted-types-for 'script'; trusted-types 'none'",
    "Cache-Control": "no-cache",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
#: Swagger UI writes styles and HTML of its own.
DOCS_HEADERS = HEADERS | {
    "Content-Security-Policy": POLICY.replace("style-src 'self'", "style-src 'self' 'unsafe-inline'")
}


FILE_HEADERS = {"Cache-Control": "no-cache", "X-Content-Type-Options": "nosniff"}
HTML: dict[str, dict[str, object]] = {"application/json": {"schema": {"type": "object"}}, "text/html": {}}


class Files(StaticFiles):
    """The browser asks each time whether a file is still the same: another version of the service has others."""

    def file_response(self, *args: Any, **options: Any) -> Response:
        response = super().file_response(*args, **options)
        response.headers.update(FILE_HEADERS)
        return response


def add_pages(app: FastAPI, *, playground: bool) -> None:
    """Adds `/docs`, and the playground if it is wanted."""
    swagger = find_spec("fastapi_offline")  # found, not imported: only its files are of use
    assert swagger is not None, "a dependency of this package"
    assert swagger.origin is not None
    app.mount("/swagger", Files(directory=Path(swagger.origin).parent / "static"))
    app.mount("/pages", Files(directory=PAGES))

    @app.get("/docs", include_in_schema=False)
    async def docs() -> FileResponse:
        return FileResponse(PAGES / "docs.html", headers=DOCS_HEADERS)

    @app.get("/", summary="What this is; for a browser the playground", responses={200: {"content": HTML}})
    async def root(request: Request) -> Response:
        if playground and "text/html" in request.headers.get("accept", ""):
            return FileResponse(PAGES / "playground.html", headers={**HEADERS, "Vary": "Accept"})
        service = {"service": "sparse encoder: texts to weighted tokens", "version": __version__, "docs": "/docs"}
        return JSONResponse(service, headers={"Vary": "Accept"})
