"""Every limit of the data plane: sizes, counts and timeouts."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Sizes are in bytes, times in seconds. The defaults are those of the settings."""

    header_bytes: int = 65536
    header_lines: int = 100  # of a response; the policy limits those of a request
    max_buffered_bytes: int = 65536  # pipelined data while a response is awaited
    request_header_timeout: float = 10.0
    request_body_timeout: float = 60.0  # a request's body without progress
    send_timeout: float = 300.0  # written bytes that the client does not read
    media_stall_timeout: float = 3600.0  # the same for audio and video, whose player may be paused
    idle_timeout: float = 180.0
    upstream_connect_timeout: float = 5.0  # including the wait for a connection
    upstream_response_timeout: float = 60.0  # to the first byte of a response
    upstream_idle_timeout: float = 30.0
    max_connections: int = 4096
    max_upstream_connections: int = 4096
    max_pending_requests: int = 1024
    form_bytes: int = 1 << 20  # of a form that is buffered before it is sent
    buffered_bytes: int = 1 << 26  # of all buffered bodies together
    form_timeout: float = 10.0
    linger_timeout: float = 2.0  # for a rejected client to read its response
