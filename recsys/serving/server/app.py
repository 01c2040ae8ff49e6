"""The HTTP application of one worker."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
import re
import time
import traceback
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any, TypeVar

import numpy as np
import orjson
import polars as pl
from fastapi import FastAPI, Request, Response
from fastapi.openapi.utils import get_openapi
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from features.errors import DataError
from recsys.serving.server import arrow, openapi
from recsys.serving.server.announcement import Announcement
from recsys.serving.server.beside import BesideReader
from recsys.serving.server.bodies import JSON, BodyReader, Fields, RankRequest
from recsys.serving.server.dispatcher import Dispatcher
from recsys.serving.server.metrics import Metrics
from recsys.serving.server.page import page_router
from recsys.serving.server.prediction_log import PredictionLog, Write
from recsys.serving.server.refusal import Refusal
from recsys.serving.server.served import ServedModel
from recsys.serving.server.settings import ServerSettings
from recsys.serving.server.shadow_feed import RANK, RANK_ARROW, SCORE, SCORE_ARROW, Answered, ShadowFeed
from recsys.serving.server.stats import LiveStats
from recsys.serving.server.traffic import TrafficSplit
from recsys.serving.server.watcher import ModelWatcher

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_TRY_AGAIN_SECONDS = 1.0

Endpoint = Callable[[Request], Awaitable[Response]]
_Answer = TypeVar("_Answer")

logger = logging.getLogger(__name__)


def create_app(settings: ServerSettings, write: Write | None = None) -> FastAPI:
    """The application of a worker.

    Args:
        settings: Limits and keys.
        write: Writes rows of the prediction log; without it nothing is logged.
    """
    return _Worker(settings, write).app


class _Application(FastAPI):
    """Its routes hold no parameters: who asks for one by name gets it without a search, which took a fifth of the time
    of a request. FastAPI describes them, and answers for those that are not there.
    """

    endpoints: dict[tuple[str, str], Endpoint]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        endpoint = self.endpoints.get((scope["method"], scope["path"])) if scope["type"] == "http" else None
        if endpoint is None:
            await super().__call__(scope, receive, send)
            return
        response = await endpoint(Request(scope, receive))
        await response(scope, receive, send)


class _Worker:
    def __init__(self, settings: ServerSettings, write: Write | None) -> None:
        self._settings, self._write_log = settings, write
        self._keys = [key.get_secret_value().encode() for key in settings.api_keys]
        self._metrics = Metrics()
        self._watcher = ModelWatcher(settings, self._metrics)
        self._dispatcher = Dispatcher(self._metrics, settings.max_rows)
        self._bodies = BodyReader(settings)
        self._log: PredictionLog | None = None
        self._split = None if settings.challenger is None else TrafficSplit(settings)
        self._feed = None if settings.shadow is None else ShadowFeed(settings)
        self._beside = BesideReader(settings)
        self._live = LiveStats(Metrics.collect)
        self._in_hand = 0
        self.app = _Application(
            title="recsys", lifespan=self._lifespan, docs_url=None, redoc_url=None, openapi_url=None, version="1"
        )
        self.app.endpoints = {}
        self.app.exception_handler(HTTPException)(_plain_refusal)
        stats = self._guarded("/v1/stats", self._stats, True)
        self.app.include_router(page_router(stats, asks_for_key=bool(self._keys)))
        question = openapi.question
        self._add(
            "GET", "/healthz", self._health, "Whether the process answers.", question("Health", key=False), key=False
        )
        self._add(
            "GET",
            "/readyz",
            self._ready,
            "Whether there is a model, and whether the registry answers.",
            question("Ready", key=False, model=True),
            key=False,
        )
        self._add("GET", "/v1/models", self._models, "What is served.", question("Models", model=True))
        self._add("GET", "/metrics", self._metrics_text, "Metrics for Prometheus.", question())
        self._add("GET", "/openapi.json", self._openapi, "This description.", question("Description", model=True))
        self._add("POST", "/v1/score", self._score, "Probabilities of rows.", openapi.operation("Score"))
        self._add(
            "POST",
            "/v1/rank",
            self._rank,
            "The best of many candidates for one user.",
            openapi.operation("Rank"),
        )

    def _add(
        self,
        method: str,
        path: str,
        endpoint: Endpoint,
        summary: str,
        extra: dict[str, Any] | None = None,
        *,
        key: bool = True,
    ) -> None:
        guarded = self._guarded(path, endpoint, key)
        self.app.endpoints[method, path] = guarded
        name = path.strip("/").replace("/", "_").replace(".", "_")
        self.app.add_api_route(
            path,
            guarded,
            methods=[method],
            summary=summary,
            operation_id=name,
            openapi_extra=extra,
            response_model=None,
            response_class=Response,
        )

    @contextlib.asynccontextmanager
    async def _lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        # A worker that takes the place of another one has its model before its first request.
        self._watcher.look()
        self._metrics.in_hand_limit.set(self._settings.queue)
        if self._write_log is not None:
            self._log = PredictionLog(self._write_log, self._settings, self._metrics)
        tasks: list[Coroutine[Any, Any, None]] = [self._watcher.watch()]
        if self._split is not None:
            self._split.watcher.look()
            tasks.append(self._split.watcher.watch())
        if self._feed is not None:
            tasks.append(self._feed.keep_connected())
        running = [asyncio.create_task(task) for task in tasks]
        try:
            yield
        finally:
            for task in running:
                task.cancel()
            if self._feed is not None:
                self._feed.close()
            if self._log is not None:
                await asyncio.to_thread(self._log.close)

    def _guarded(self, path: str, endpoint: Endpoint, key: bool) -> Endpoint:
        """The endpoint with its key checked, its time taken, and every error turned into an answer."""
        seconds = self._metrics.seconds.labels(path)

        async def answer(request: Request) -> Response:
            started = time.perf_counter()
            try:
                if key:
                    self._check_key(request)
                response = await endpoint(request)
            except Refusal as refusal:
                response = self._refuse(refusal)
            except DataError as error:
                response = self._refuse(Refusal.of(error))
            except (Exception, pl.exceptions.PanicException) as error:
                _tell(error, path)
                response = self._refuse(Refusal(500, "internal", "the server failed on this request"))
            self._metrics.requests.labels(path, str(response.status_code)).inc()
            seconds.observe(time.perf_counter() - started)
            return response

        return answer

    def _refuse(self, refusal: Refusal) -> Response:
        self._metrics.refused.labels(refusal.kind).inc()
        return _answer(refusal.body(), refusal.status, refusal.headers())

    def _check_key(self, request: Request) -> None:
        if not self._keys:
            return
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        given = token if scheme.lower() == "bearer" else request.headers.get("x-api-key", "")
        fits = [hmac.compare_digest(given.encode(), own) for own in self._keys]
        if not any(fits):
            raise Refusal(401, "key", "the API key is missing or wrong: send Authorization: Bearer KEY")

    async def _health(self, request: Request) -> Response:
        return _answer({"status": "alive"})

    async def _ready(self, request: Request) -> Response:
        model, told = self._watcher.model, self._watcher.announcement
        if model is None or told is None:
            return _answer({"status": "no model yet"}, 503, {"Retry-After": "1"})
        answer = {"status": "ready", "model": model.name, "version": model.version, "registry": _registry(told)}
        return _answer(answer | self._beside.read())

    async def _models(self, request: Request) -> Response:
        return _answer({"models": [self._model().describe()]})

    async def _metrics_text(self, request: Request) -> Response:
        text = await asyncio.to_thread(self._metrics.text)
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    async def _stats(self, request: Request) -> Response:
        found = dict(await asyncio.to_thread(self._live.read))
        model, told = self._watcher.model, self._watcher.announcement
        if model is None or told is None:
            return _answer(found | {"model": None})
        who = {"model": model.name, "version": model.version, "role": model.role, "registry": _registry(told)}
        return _answer(found | who | self._beside.read())

    async def _openapi(self, request: Request) -> Response:
        described = get_openapi(title=self.app.title, version=self.app.version, routes=self.app.routes)
        schemas = {"Error": openapi.ERROR} | openapi.schema_of(self._model(), self._settings)
        described.setdefault("components", {})["schemas"] = schemas
        if self._keys:
            described["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
            described["security"] = [{"key": []}]
        return _answer(described)

    async def _score(self, request: Request) -> Response:
        with self._taken():
            request_id, deadline = _request_id(request), self._deadline(request)
            champion, model = self._dealt(request_id)
            kind = _content_type(request, (JSON, arrow.MEDIA_TYPE))
            body = await self._body(request, deadline)
            read = self._bodies.score_rows if kind == JSON else self._bodies.score_frame

            async def ask(model: ServedModel) -> tuple[list[dict[str, Any]] | pl.DataFrame, np.ndarray]:
                fields = Fields()
                rows = read(body, model, fields)
                scores = await self._dispatcher.score(model, rows, None, deadline)
                self._count(fields)
                return rows, scores

            model, (rows, scores) = await self._answered(champion, model, ask)
            if self._log is not None:
                logged = rows if isinstance(rows, list) else rows.to_dicts()
                at = time.time()
                self._log.add(model, request_id, logged, None, scores, at)
                self._offer(model, request_id, at, SCORE if kind == JSON else SCORE_ARROW, body)
            who = {"model": model.name, "version": model.version, "request_id": request_id}
            columns = {name: scores[:, place] for place, name in enumerate(model.outputs)}
            if kind == arrow.MEDIA_TYPE:
                stream = arrow.write_stream(columns, who)
                return Response(stream, media_type=arrow.MEDIA_TYPE, headers=_version_headers(model, request_id))
            lists = {name: column.tolist() for name, column in columns.items()}
            return _answer(who | {"scores": lists}, headers=_version_headers(model, request_id))

    async def _rank(self, request: Request) -> Response:
        with self._taken():
            request_id, deadline = _request_id(request), self._deadline(request)
            champion, model = self._dealt(request_id)
            kind = _content_type(request, (JSON, arrow.MEDIA_TYPE))
            body = await self._body(request, deadline)
            read = self._bodies.rank_rows if kind == JSON else self._bodies.rank_frame

            async def ask(model: ServedModel) -> tuple[RankRequest, np.ndarray]:
                fields = Fields()
                asked = read(body, model, fields)
                scores = await self._dispatcher.score(model, asked.candidates, asked.user, deadline)
                self._count(fields)
                return asked, scores

            model, (asked, scores) = await self._answered(champion, model, ask)
            if self._log is not None:
                at = time.time()
                self._log.add(model, request_id, asked.candidates, asked.user, scores, at)
                self._offer(model, request_id, at, RANK if kind == JSON else RANK_ARROW, body)
            # Equal scores stay in the order of the request.
            best = np.argsort(-scores[:, asked.by], kind="stable")[: asked.k]
            who = {"model": model.name, "version": model.version, "request_id": request_id}
            if kind == arrow.MEDIA_TYPE:
                columns = {"index": best} | dict(zip(model.outputs, scores[best].T, strict=True))
                stream = arrow.write_stream(columns, who)
                return Response(stream, media_type=arrow.MEDIA_TYPE, headers=_version_headers(model, request_id))
            ranking = [
                {"index": int(place), **dict(zip(model.outputs, scores[place].tolist(), strict=True))} for place in best
            ]
            return _answer(who | {"ranking": ranking}, headers=_version_headers(model, request_id))

    @contextlib.contextmanager
    def _taken(self) -> Any:
        """Within, a request is in hand; there is room for so many."""
        if self._in_hand >= self._settings.queue:
            wait = max(_TRY_AGAIN_SECONDS, self._dispatcher.wait_seconds)
            raise Refusal(429, "busy", "too many requests at a time", retry_seconds=wait)
        self._in_hand += 1
        self._metrics.in_hand.set(self._in_hand)
        try:
            yield
        finally:
            self._in_hand -= 1
            self._metrics.in_hand.set(self._in_hand)

    def _model(self) -> ServedModel:
        model = self._watcher.model
        if model is None:
            raise Refusal(503, "no_model", "there is no model yet", retry_seconds=_TRY_AGAIN_SECONDS)
        return model

    def _dealt(self, request_id: str) -> tuple[ServedModel, ServedModel]:
        """The champion, and the model that is to answer a request."""
        champion = self._model()
        return champion, champion if self._split is None else self._split.deal(champion, request_id)

    async def _answered(
        self, champion: ServedModel, model: ServedModel, ask: Callable[[ServedModel], Awaitable[_Answer]]
    ) -> tuple[ServedModel, _Answer]:
        """What a model answers, and which one did: the champion where the challenger fails.

        Raises:
            Refusal: The request is refused, by whichever model was asked.
            DataError: A value is wrong.
        """
        try:
            return model, await ask(model)
        except (Refusal, DataError):
            raise
        except (Exception, pl.exceptions.PanicException) as error:
            if model is champion or self._split is None:
                raise
            _tell(error, f"version {model.version}, the challenger; the champion answers")
            self._split.failed()
        return champion, await ask(champion)

    def _offer(self, model: ServedModel, request_id: str, at: float, kind: str, body: bytes) -> None:
        """Lets the shadow score what the champion answered."""
        if self._feed is not None and model.role == self._settings.role:
            self._feed.offer(Answered(request_id, at, model.name, model.version, kind), body)

    def _deadline(self, request: Request) -> float:
        longest = self._settings.timeout_ms
        given = request.headers.get("x-timeout-ms")
        if given is None:
            return time.monotonic() + longest / 1000
        if not (given.isascii() and given.isdigit() and 0 < len(given) < 10 and int(given) > 0):
            message = f"X-Timeout-Ms: wrong value. Expected: a whole number of milliseconds from 1 to {longest}"
            raise Refusal(400, "malformed", message, field="X-Timeout-Ms")
        return time.monotonic() + min(int(given), longest) / 1000

    async def _body(self, request: Request, deadline: float) -> bytes:
        limit = self._settings.max_body_bytes
        if request.headers.get("content-encoding", "identity") != "identity":
            raise Refusal(415, "media_type", "compressed bodies are not read", field="Content-Encoding")
        length = request.headers.get("content-length", "")
        if length.isdigit() and int(length) > limit:
            raise _too_large(limit)
        chunks, size = [], 0
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                async for chunk in request.stream():
                    size += len(chunk)
                    if size > limit:
                        raise _too_large(limit)
                    chunks.append(chunk)
        except ClientDisconnect:
            raise Refusal(400, "disconnected", "the body broke off") from None
        except TimeoutError:
            raise Refusal(503, "deadline", "the deadline passed before the body was there", retry_seconds=1) from None
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    def _count(self, fields: Fields) -> None:
        for field, rows in fields.missing.items():
            self._metrics.missing.labels(field).inc(rows)
        if fields.unknown:
            self._metrics.unknown.inc(fields.unknown)


def _tell(error: BaseException, where: str) -> None:
    """Logs an error of ours without its message, which may hold values of a row."""
    logger.error("%s in %s:\n%s", type(error).__name__, where, "".join(traceback.format_tb(error.__traceback__)))


def _answer(data: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(orjson.dumps(data), status, headers, JSON)


def _registry(told: Announcement) -> dict[str, Any]:
    """What is known of the registry."""
    return {
        "reachable": told.reachable,
        "seconds_since_reached": round(max(0.0, time.time() - told.reached), 1),
        "refused_version": told.refused,
    }


async def _plain_refusal(request: Request, error: Any) -> Response:
    """Of a path or a method that does not exist."""
    refusal = Refusal(error.status_code, "no_such_route", str(error.detail))
    return _answer(refusal.body(), refusal.status, dict(error.headers or {}))


def _version_headers(model: ServedModel, request_id: str) -> dict[str, str]:
    return {"X-Model-Version": model.version, "X-Request-Id": request_id}


def _request_id(request: Request) -> str:
    given = request.headers.get("x-request-id")
    if given is None:
        return uuid.uuid4().hex
    if not _REQUEST_ID.fullmatch(given):
        message = "X-Request-Id: wrong value. Expected: at most 128 letters, digits, `.`, `_` and `-`"
        raise Refusal(400, "malformed", message, field="X-Request-Id")
    return given


def _content_type(request: Request, known: tuple[str, ...]) -> str:
    given = request.headers.get("content-type", JSON).partition(";")[0].strip().lower()
    if given not in known:
        raise Refusal(415, "media_type", f"Content-Type: expected {' or '.join(known)}", field="Content-Type")
    return given


def _too_large(limit: int) -> Refusal:
    return Refusal(413, "too_large", f"the body is too large. Expected: at most {limit:,} bytes")
