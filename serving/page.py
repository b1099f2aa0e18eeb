"""The page at `/`: drop a clip, read its caption, ask about it. Gradio draws it, where it is installed (extra `ui`).

`create_page` gives an app that is mounted before anybody knows whether there will be a page; the service opens it when
it starts. Gradio takes seconds to import and is built beside the event loop, in the worker only.
"""

import asyncio
import importlib.util
import os
import re
import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import bentoml
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from . import page_view
from .answers import Refusal
from .api import MAX_TEXT
from .page_desk import Desk
from .page_gate import ROUTES, Gate
from .service_settings import Settings

DESCRIPTION = Path(bentoml.__file__).parents[1] / "_bentoml_impl" / "server" / "main-openapi.html"
ASSETS = Path(__file__).parent / "page_assets"
UPLOADS_AT_A_TIME = 10  # of the largest size allowed: more, and the oldest are deleted
KEPT_SECONDS = 1800  # a clip can be played and asked about
TRACKER = re.compile(r"<!-- Google Tag Manager.*?<!-- End Google Tag Manager[^>]*-->", re.DOTALL)
EMPTY = (page_view.WAITING, "", "", "")
NO_PAGE = "To drop clips on a page here: pip install 'videoblip2[ui]', and start the service again."


class Page:
    """Nothing, or Gradio behind its gate, once it is built."""

    def __init__(self) -> None:
        self.gate: asyncio.Task[Gate] | None = None
        self._folder: Path | None = None

    def open(self, desk: Desk, settings: Settings) -> None:
        """Begin to build the page, where it is wanted and Gradio is installed; call it on the event loop."""
        if settings.page and installed():
            self._folder = Path(tempfile.mkdtemp(prefix="vb2-page-"))
            self.gate = asyncio.create_task(_opened(desk, settings, self._folder))

    def close(self) -> None:
        """Delete every upload."""
        if self._folder:
            shutil.rmtree(self._folder, ignore_errors=True)
        self.gate = self._folder = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve one request to a route of the page."""
        if self.gate is not None:
            await (await asyncio.shield(self.gate))(scope, receive, send)
        elif scope["path"] == "/":
            await (await describe(Request(scope)))(scope, receive, send)
        else:
            await Response("Not Found", 404)(scope, receive, send)


def installed() -> bool:
    """Whether Gradio is there; it is not imported."""
    return importlib.util.find_spec("gradio") is not None


def create_page(page: Page) -> Starlette:
    """The routes of the page, and /docs, which describes the API."""
    routes = [Route("/", page, methods=["GET"]), Route("/docs", describe, methods=["GET"])]
    routes += [Route(path, page, methods=[method]) for method, paths in ROUTES.items() for path in paths]
    return Starlette(routes=routes)


async def describe(request: Request) -> Response:
    """BentoML's description of the API, without the tracker in it, and with a word on the page where there is none."""
    content = DESCRIPTION.read_text(encoding="utf-8")
    note = "" if installed() else f"<p style='text-align:center'>{NO_PAGE}</p>"
    return HTMLResponse(TRACKER.sub("", content).replace("<body>", f"<body>{note}", 1))


async def _opened(desk: Desk, settings: Settings, folder: Path) -> Gate:
    app = await asyncio.to_thread(_build, desk, settings, folder)
    app.get_blocks().run_startup_events()  # Gradio's queue begins to work, on this event loop
    return Gate(app, folder, UPLOADS_AT_A_TIME * settings.upload_bytes, KEPT_SECONDS)


def _build(desk: Desk, settings: Settings, folder: Path) -> Any:
    """Import Gradio, which reads these variables, and make its app."""
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": str(folder)}
    import gradio
    from fastapi import FastAPI

    blocks = _blocks(desk)
    blocks.queue(default_concurrency_limit=settings.max_requests, max_size=settings.max_waiting, api_open=False)
    around = FastAPI()
    gradio.mount_gradio_app(
        around,
        blocks,
        path="/",
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        enable_monitoring=False,
        show_error=False,
        max_file_size=settings.upload_bytes,
        theme=gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
        css_paths=ASSETS / "page.css",
        head=f"<script>{(ASSETS / 'page.js').read_text(encoding='utf-8')}</script>",
    )
    return around.routes[-1].app  # type: ignore[attr-defined]


def _blocks(desk: Desk) -> Any:
    import gradio as gr

    async def watch(clip: str | None) -> AsyncIterator[tuple[str, ...]]:
        async for shown in caption(desk, clip):
            yield shown

    async def answer(clip: str | None, question: str) -> AsyncIterator[tuple[str, Any]]:
        async for said, look in ask(desk, clip, question):
            yield said, gr.skip() if look is None else look

    with gr.Blocks(title="VideoBLIP2", analytics_enabled=False) as blocks:
        gr.HTML(page_view.HEADER)
        with gr.Row():
            with gr.Column(scale=6, min_width=320):
                clip = gr.Video(label="Clip", sources=["upload"], height=340, buttons=[], elem_id="vb2-clip")
                look = gr.HTML(elem_id="vb2-look")
            with gr.Column(scale=5, min_width=320):
                said = gr.HTML(page_view.WAITING, elem_id="vb2-said")
                question = gr.Textbox(
                    label="Ask about the clip",
                    placeholder="what is the man playing?",
                    max_length=MAX_TEXT,
                    submit_btn="Ask",
                    elem_id="vb2-question",
                )
                answered = gr.HTML(elem_id="vb2-answer")
                known = gr.HTML(elem_id="vb2-known")
        hidden: dict[str, Any] = {"api_visibility": "private", "concurrency_limit": None, "show_progress": "hidden"}
        clip.upload(watch, [clip], [said, look, answered, known], **hidden)
        clip.clear(lambda: EMPTY, None, [said, look, answered, known], **hidden)
        question.submit(answer, [clip, question], [answered, look], **hidden)
    return blocks


async def caption(desk: Desk, clip: str | None) -> AsyncIterator[tuple[str, ...]]:
    """What a dropped clip shows, as it becomes known: cards, strip, an empty answer, references."""
    if clip is None:
        yield EMPTY
        return
    yield page_view.working("Watching and listening …"), "", "", ""
    try:
        watched, look = await desk.watch(Path(clip), None)
    except Refusal as refusal:
        yield page_view.problem(refusal.reason), "", "", ""
        return
    strip, known = page_view.strip(look), page_view.references(watched.references)
    yield page_view.caption_card(watched, None, waiting=True), strip, "", known
    if watched.expected is not None:
        yield page_view.caption_card(watched, await desk.challenger(watched)), strip, "", known


async def ask(desk: Desk, clip: str | None, question: str) -> AsyncIterator[tuple[str, str | None]]:
    """What a question shows: the answer, and the strip of that answer (None: as it is)."""
    yield page_view.working("Thinking …"), None
    try:
        if clip is None:
            raise Refusal(400, "there is no clip yet; drop one first")
        if not (question.strip() and len(question) <= MAX_TEXT):
            raise Refusal(400, f"a question has 1 to {MAX_TEXT} characters")
        watched, look = await desk.watch(Path(clip), question.strip())
    except Refusal as refusal:
        yield page_view.problem(refusal.reason), None
        return
    yield page_view.answer_card(watched, question.strip()), page_view.strip(look, f"“{question.strip()}”")
