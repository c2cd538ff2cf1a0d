"""The endpoints, as an ASGI app."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp

from ..inference.classifier import ImageClassifier
from . import metrics as metrics_module
from .access import Access
from .bodies import Bodies, Body, parse
from .card import describe_model
from .errors import busy
from .guard import Guard
from .limits import Limits
from .metrics import Metrics
from .page_files import PAGE_FILES, read_page_file
from .service import Service

_MOST_PIXELS_AS_THEY_ARE = 2_000_000  # for pictures that are not resized: 24 MB of pixel values


def make_app(
    classifier: ImageClassifier,
    limits: Limits | None = None,
    access: Access | None = None,
    *,
    name: str = "",
    card: str = "",
) -> ASGIApp:
    """An ASGI app that serves a classifier.

    `POST /` classifies with the protocol of Hugging Face's inference clients. `POST /embed` returns features and
    `POST /explain` a heat map. `GET /` is a page for people; `/info`, `/health` and `/metrics` are for programs. No
    picture is written to disk.

    Args:
        classifier: its model runs in one thread of the app. Its processor's max_pixels is set to the limit, or lower if
            pictures keep their size, because waiting pictures are held in float32.
        limits: None takes the defaults.
        access: who may send requests; None allows only requests to localhost, and from its own pages.
        name, card: the model's name and a text about it, for the page.
    """
    limits = limits or Limits()
    metrics = Metrics()
    most = limits.max_pixels if classifier.processor.do_resize else min(limits.max_pixels, _MOST_PIXELS_AS_THEY_ARE)
    classifier.processor.max_pixels = min(most, classifier.processor.max_pixels)
    service = Service(classifier, limits, metrics)
    endpoints = _Endpoints(service, Bodies(limits), name, card)
    routes = [
        *(Route(path, endpoints.page_file, methods=["GET"]) for path in PAGE_FILES),
        Route("/", endpoints.classify, methods=["POST"]),
        Route("/embed", endpoints.embed, methods=["POST"]),
        Route("/explain", endpoints.explain, methods=["POST"]),
        Route("/info", endpoints.info, methods=["GET"]),
        Route("/health", endpoints.health, methods=["GET"]),
        Route("/health/live", endpoints.live, methods=["GET"]),
        Route("/health/ready", endpoints.health, methods=["GET"]),
        Route("/metrics", endpoints.metrics, methods=["GET"]),
    ]

    @asynccontextmanager
    async def lifespan(_: Any) -> AsyncIterator[None]:
        yield
        service.close()

    app = Router(routes, redirect_slashes=False, lifespan=lifespan)
    return Guard(app, access or Access(), metrics, frozenset(route.path for route in routes))


class _Json(JSONResponse):
    """In ASCII, which holds whatever a checkpoint's labels hold, halves of surrogate pairs too."""

    def render(self, content: Any) -> bytes:
        return json.dumps(content, allow_nan=False).encode("ascii")


class _Endpoints:
    def __init__(self, service: Service, bodies: Bodies, name: str, card: str):
        self._service, self._bodies = service, bodies
        self._info = describe_model(service.classifier, name, card)
        self._started = time.time()

    async def page_file(self, request: Request) -> Response:
        content, kind = read_page_file(request.url.path)
        return Response(content, headers={"Content-Type": kind, "Cache-Control": "no-cache"})

    async def classify(self, request: Request) -> Response:
        return _Json(await self._served(request, self._service.classify))

    async def embed(self, request: Request) -> Response:
        return _Json({"embedding": await self._served(request, self._service.embed)})

    async def explain(self, request: Request) -> Response:
        explanation, png = await self._served(request, self._service.explain)
        if png is None:
            return _Json(explanation.to_dict())
        headers = {"X-Label": quote(explanation.label, errors="replace"), "X-Score": f"{explanation.score:.6f}"}
        return Response(png, media_type="image/png", headers={**headers, "Cache-Control": "no-store"})

    async def info(self, request: Request) -> Response:
        inference = self._service.metrics.inference.mean()
        limits = self._service.limits
        known = {"max_body": limits.max_body, "max_pixels": limits.max_pixels}
        return _Json({**self._info, "limits": known, "seconds_per_batch": inference})

    async def live(self, request: Request) -> Response:
        return _Json({"live": True})

    async def health(self, request: Request) -> Response:
        ready = self._service.ready
        return _Json({"live": True, "ready": ready}, 200 if ready else 503)

    async def metrics(self, request: Request) -> Response:
        service = self._service
        gauges = {"waiting": service.waiting, "held_bytes": self._bodies.held, "started_seconds": self._started}
        return Response(service.metrics.text(**gauges), media_type=metrics_module.CONTENT_TYPE)

    async def _served(self, request: Request, answer: Callable[[Body], Awaitable[Any]]) -> Any:
        """The answer to a body, within the limits. A slow sender does not take the place of a waiting request."""
        if self._service.full:
            raise busy()
        kind, query = request.headers.get("content-type", ""), dict(request.query_params)
        with self._bodies.reading() as reader:
            content = await reader.read(request)
            with self._service.admitted():
                return await answer(await self._service.in_thread(lambda: parse(content, kind, query)))
