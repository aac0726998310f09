"""The API of the audit trail. Imported only if the trail is stored."""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict
from functools import partial
from typing import Annotated, Any, Final, Literal, TypeVar

from fastapi import APIRouter, Query
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.requests import Request

from shim.audit.export import csv_header, csv_line, json_line, record_of
from shim.audit.query import CHOICES, parse_filters, parse_time, parse_zone
from shim.audit.sanitize import timestamp
from shim.audit.store.filters import FilterError, Filters
from shim.audit.store.reader import TrailReader
from shim.audit.store.results import MAX_PAGE, Page, Position, StoredEvent
from shim.audit.store.schema import HOUR
from shim.control.access import Access
from shim.control.live import LiveTrail

T = TypeVar("T")

# Queries that wait for the reader's thread.
_MAX_WAITING: Final = 32
_MINUTE: Final = 60_000_000
BUCKETS: Final = {"minute": _MINUTE, "hour": HOUR, "day": 24 * HOUR}
# An answer has at most this many buckets.
_MAX_BUCKETS: Final = 2000
_DEFAULT_PERIOD: Final = 24 * HOUR
_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")

Format = Literal["json", "ndjson", "csv"]


def _filter(description: str) -> Any:
    return Query(description=description)


class Queries:
    """Runs queries in the reader's thread, one after the other. Beyond `_MAX_WAITING` they are rejected."""

    def __init__(self, reader: TrailReader) -> None:
        self._reader = reader
        self._waiting = 0

    async def run(self, work: Callable[[TrailReader], T]) -> T:
        """Return the result of `work`. Raises 503, and what the reader raises."""
        if self._waiting >= _MAX_WAITING:
            raise HTTPException(
                503, "too many queries of the audit trail: try again", {"Retry-After": "5"}
            )
        self._waiting += 1
        try:
            return await self._reader.in_thread(work)
        finally:
            self._waiting -= 1


# The filters, for the OpenAPI document.
_DESCRIPTIONS: Final = {
    "since": "2h, yesterday, 2026-11-01 or 2026-11-01T08:30Z; included.",
    "until": "As since; excluded.",
    "stream": "requests or changes.",
    "kind": "Kinds of events.",
    "severity": "Severities.",
    "verdict": "Verdicts.",
    "reason": "Reasons of decisions and of failures.",
    "path_class": "Path classes.",
    "peer": "Address or network of the peer.",
    "client": "Address or network of the client.",
    "user": "Name at the identity provider, trusted or claimed; without case.",
    "account": "Name of the Navidrome account; without case.",
    "request_id": "X-Request-Id of a response.",
    "text": "Text in a value, without case; searches the newest 100,000 events that match the rest.",
    "zone": "Time zone of times without one, such as Europe/Vienna; by default UTC.",
}
FILTER_PARAMETERS: Final[list[dict[str, Any]]] = [
    {
        "name": name,
        "in": "query",
        "description": described,
        "schema": {"type": "array", "items": {"type": "string", "enum": list(CHOICES[name])}}
        if name in CHOICES
        else {"type": "string"},
        **({"explode": True, "style": "form"} if name in CHOICES else {}),
    }
    for name, described in _DESCRIPTIONS.items()
]


def filters_of(request: Request) -> Filters:
    """Return the filters in the query of a request. A name that is no parameter is an error. Raises
    `FilterError`."""
    given = request.query_params.multi_items()
    return parse_filters(
        ((name, value) for name, value in given if name not in _OTHER_NAMES),
        _now(),
        parse_zone(request.query_params.get("zone", "")),
    )


# What is no filter, but may be in a query.
_OTHER_NAMES: Final = frozenset({"zone", "cursor", "limit", "order", "format"})


def audit_routes(access: Access, reader: TrailReader, live: LiveTrail) -> APIRouter:
    """Return the routes, for the guarded router."""
    router = APIRouter(prefix="/api/audit")
    queries = Queries(reader)
    extra = {"parameters": FILTER_PARAMETERS}

    @router.get("/events", summary="A page of events, newest first", openapi_extra=extra)
    async def events(
        request: Request,
        cursor: Annotated[
            str | None, Query(description="`next_cursor` of the page before.")
        ] = None,
        limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = 100,
        order: Annotated[Literal["newest", "oldest"], Query()] = "newest",
        format: Annotated[Format, Query()] = "json",  # noqa: A002 - the parameter's name
    ) -> Response:
        filters = filters_of(request)
        page = await queries.run(
            lambda each: each.page(
                filters, cursor=cursor or None, limit=limit, oldest_first=order == "oldest"
            )
        )
        return _page_response(page, format)

    @router.get("/events/{event_id}", summary="One event, with its place in the chain of hashes")
    async def event(event_id: str) -> Response:
        if not _ID.fullmatch(event_id.lower()):
            raise HTTPException(400, "an event's id is a UUID")
        found = await queries.run(lambda each: each.get(event_id.lower()))
        if found is None:
            raise HTTPException(404, "the trail has no event with this id; it may be too old")
        return JSONResponse({"event": record_of(found), "integrity": integrity(found)})

    @router.get("/summary", summary="Number of events in buckets, by kind, verdict and reason")
    async def summary(
        request: Request,
        since: Annotated[str, _filter("By default 24 hours ago.")] = "",
        until: Annotated[str, _filter("By default now.")] = "",
        zone: Annotated[str, _filter("Time zone of times without one, by default UTC.")] = "",
        bucket: Annotated[Literal["minute", "hour", "day"], Query()] = "hour",
    ) -> Response:
        _check_names(request, "since", "until", "zone", "bucket")
        start, end = _period(since, until, zone)
        size = BUCKETS[bucket]
        if (end - start) / size > _MAX_BUCKETS:
            raise FilterError(
                f"the period has more than {_MAX_BUCKETS} buckets: choose a longer bucket or a shorter period"
            )
        found = await queries.run(lambda each: each.summary(start, end, size))
        cells = [{**asdict(cell), "start": timestamp(cell.start / 1e6)} for cell in found.cells]
        return JSONResponse(
            {
                "since": timestamp(found.since / 1e6),
                "until": timestamp(found.until / 1e6),
                "bucket_seconds": found.bucket // 1_000_000,
                "cells": cells,
            }
        )

    @router.get(
        "/stream", summary="New events as they are stored (server-sent events)", openapi_extra=extra
    )
    async def stream(request: Request) -> Response:
        filters = filters_of(request)
        if filters.since is not None or filters.until is not None:
            raise FilterError("a stream has new events only: leave since and until out")
        last = request.headers.get("Last-Event-ID")
        position = Position.parse(last) if last else None
        if live.is_full:
            raise HTTPException(
                429, "too many viewers follow the trail: close one", {"Retry-After": "15"}
            )
        followed = live.follow(filters, position, partial(access.may_still_read, request))
        # A fault before the first event is a response of its own.
        first = await anext(followed, None)
        return StreamingResponse(
            _server_sent(first, followed),
            media_type="text/event-stream",
            headers={"X-Accel-Buffering": "no"},
        )

    return router


def integrity(stored: StoredEvent) -> dict[str, Any]:
    """Return the event's place in the chain of hashes."""
    return {
        "stream": stored.stream,
        "index": stored.index,
        "chain": stored.chain,
        "hash": stored.hash,
        "key_id": stored.key_id or None,
    }


def _page_response(page: Page, form: Format) -> Response:
    following = {} if page.next_cursor is None else {"X-Next-Cursor": page.next_cursor}
    if form == "json":
        return JSONResponse(
            {
                "events": [record_of(each) for each in page.events],
                "next_cursor": page.next_cursor,
                "note": page.note,
            }
        )
    if form == "ndjson":
        lines = "".join(map(json_line, page.events))
        return Response(lines, headers=following, media_type="application/x-ndjson")
    lines = csv_header() + "".join(map(csv_line, page.events))
    headers = {**following, "Content-Disposition": 'attachment; filename="audit.csv"'}
    return Response(lines, headers=headers, media_type="text/csv; charset=utf-8")


async def _server_sent(first: Any, batches: AsyncIterator[Any]) -> AsyncIterator[str]:
    yield "retry: 3000\n"
    if first is not None:
        yield _message(first)
    async for batch in batches:
        yield _message(batch)


def _message(batch: Any) -> str:
    """Return the events of a batch as messages; without one a comment, which keeps the connection open, and
    the position for `Last-Event-ID`."""
    if not batch.events:
        return f": no event\nid: {batch.position}\n\n"
    *most, last = batch.events
    messages = [f"data: {json_line(each)}\n" for each in most]
    return "".join((*messages, f"id: {batch.position}\ndata: {json_line(last)}\n"))


def _check_names(request: Request, *known: str) -> None:
    for name in request.query_params:
        if name not in known:
            raise FilterError(f"{name[:40]!r} is no parameter: use {', '.join(known)}")


def _period(since: str, until: str, zone: str) -> tuple[int, int]:
    now, reader = _now(), parse_zone(zone)
    end = parse_time("until", until, now, reader) if until else now
    start = parse_time("since", since, now, reader) if since else end - _DEFAULT_PERIOD
    if start >= end:
        raise FilterError("since: expected a time before until")
    return start, end


def _now() -> int:
    return time.time_ns() // 1000
