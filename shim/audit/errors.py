"""Errors of the audit trail."""


class NotifyError(Exception):
    """The settings of notifications can't be used. The message contains no secret."""
