"""The page at `/` and the description of the API at `/docs`.

The page is three static files that speak to the API's own routes. All its addresses are relative, so it works under any
prefix, and its Content-Security-Policy lets a browser run and load nothing but these files.
"""

import re
from pathlib import Path

import bentoml
from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, HTMLResponse, Response
from starlette.exceptions import HTTPException

STATIC = Path(__file__).parent / "static"
MEDIA_TYPES = {"page.js": "text/javascript", "page.css": "text/css"}
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; media-src blob:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
API_DESCRIPTION = Path(bentoml.__file__).parents[1] / "_bentoml_impl" / "server" / "main-openapi.html"
TRACKER = re.compile(r"<!-- Google Tag Manager.*?<!-- End Google Tag Manager[^>]*-->", re.DOTALL)


def add_page(app: FastAPI) -> None:
    """Add the page's routes to `app`; they are no part of the API's description."""
    app.add_api_route("/", index, include_in_schema=False)
    app.add_api_route("/static/{name}", static_file, include_in_schema=False)
    app.add_api_route("/docs", docs, include_in_schema=False)


async def index(request: Request) -> Response:
    """The page, or with VB2_PAGE=false the description of the API."""
    if not request.app.state.engine.settings.page:
        return await docs()
    return FileResponse(STATIC / "index.html", media_type="text/html", headers=HEADERS)


async def static_file(name: str) -> Response:
    """The page's script or style."""
    if name not in MEDIA_TYPES:
        raise HTTPException(404)
    return FileResponse(STATIC / name, media_type=MEDIA_TYPES[name], headers=HEADERS)


async def docs() -> Response:
    """BentoML's interactive description of the API, without the tracker it contains."""
    return HTMLResponse(TRACKER.sub("", API_DESCRIPTION.read_text(encoding="utf-8")))
