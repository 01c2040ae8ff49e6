"""The page on `/`: files that hold nothing of the model.

Their script asks `/v1/stats`, `/v1/models` and `/openapi.json`, as any other client may.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from importlib import resources

from fastapi import APIRouter, Request, Response

POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
"""Content-Security-Policy: nothing from elsewhere, and no script or style but our own files."""
_HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    # A new release is seen at once; the files are a few kB.
    "Cache-Control": "no-cache",
}
_TYPES = {
    "index.html": "text/html",
    "style.css": "text/css",
    "icon.svg": "image/svg+xml",
    "main.js": "text/javascript",
    "api.js": "text/javascript",
    "chart.js": "text/javascript",
    "dom.js": "text/javascript",
    "history.js": "text/javascript",
}


def page_router(stats: Callable[[Request], Awaitable[Response]], *, asks_for_key: bool) -> APIRouter:
    """The routes of the page. Its files ask for no key, since they tell nothing: the page asks for it.

    Args:
        stats: Answers `/v1/stats`. It is the page's and changes with it, so that it is not in the OpenAPI description.
        asks_for_key: Whether routes ask for a key.
    """
    router = APIRouter(include_in_schema=False)
    router.add_api_route("/v1/stats", stats, methods=["GET"])
    for name, media_type in _TYPES.items():
        content = resources.files("recsys.serving.server").joinpath("web", name).read_bytes()
        path = f"/web/{name}"
        if name == "index.html":
            path = "/"
            content = content.replace(b'data-key="none"', b'data-key="asked"') if asks_for_key else content
        router.add_api_route(path, _giver(content, media_type), methods=["GET"], name=name)
    return router


def _giver(content: bytes, media_type: str) -> Callable[[], Awaitable[Response]]:
    async def give() -> Response:
        return Response(content, media_type=media_type, headers=_HEADERS)

    return give
