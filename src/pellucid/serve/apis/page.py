"""The page and its files. The page itself needs no key; the requests that it sends do."""

from __future__ import annotations

from starlette.responses import Response

from pellucid.errors import NotFound
from pellucid.errors.messages import brief
from pellucid.serve.api import Api, ClientCall, Route
from pellucid.serve.openai.response_parts import error_body
from pellucid.web.bundle import web_files

KINDS = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
HEADERS = {
    # Scripts and styles are files of this server. Text of a model or a user cannot run as a script or a style.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    # A site that opens the page gets no reference to the page's window.
    "Cross-Origin-Opener-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
    "Vary": "Accept",
}


def _file(path: str) -> Response:
    content = web_files().get(path)
    if content is None:
        raise NotFound(f"web/{brief(path)}: the page has no such file")
    kind = KINDS[path[path.rindex(".") :]]
    return Response(content, media_type=kind, headers=HEADERS)


async def _root(call: ClientCall) -> Response:
    if "text/html" in call.request.headers.get("accept", ""):
        return _file("index.html")
    return Response("Pellucid is running", media_type="text/plain")


async def _web(call: ClientCall) -> Response:
    return _file(call.request.path_params["path"])


PAGE = Api(
    "page",
    {
        "GET /": Route(
            _root,
            "The page, for browsers; a short text for Ollama's clients.",
            media="text/plain",
        ),
        "GET /web/{path:path}": Route(_web, "A file of the page.", media="text/javascript"),
    },
    error_body,
    prefixes=("/web",),
)
