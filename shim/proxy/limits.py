"""Every limit of the data plane: sizes, counts and timeouts."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Sizes are in bytes, times in seconds. A limit without a default is the setting of the same name, which
    has the default."""

    header_bytes: int  # the setting `max_header_bytes`
    header_lines: int  # of a response, `max_headers`; the policy limits those of a request
    max_buffered_bytes: int = 65536  # pipelined data while a response is awaited
    request_header_timeout: float
    request_body_timeout: float  # a request's body without progress
    send_timeout: float  # written bytes that the client does not read
    media_stall_timeout: float = 3600.0  # the same for audio and video, whose player may be paused
    idle_timeout: float
    upstream_connect_timeout: float  # including the wait for a connection
    upstream_response_timeout: float  # to the first byte of a response
    upstream_idle_timeout: float = 30.0
    max_connections: int
    max_upstream_connections: int
    max_pending_requests: int
    form_bytes: int = 1 << 20  # of a form that is buffered before it is sent
    buffered_bytes: int = 1 << 26  # of all buffered bodies together
    form_timeout: float = 10.0
    linger_timeout: float = 2.0  # for a rejected client to read its response
