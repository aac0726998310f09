"""Errors of the audit trail."""


class SinkError(Exception):
    """The settings of a sink can't be used. The message contains no secret."""
