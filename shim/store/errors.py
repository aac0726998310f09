"""How the store fails. In a file of its own, so that who catches it does not load the database's code."""

from __future__ import annotations


class StoreError(Exception):
    """The store can't be used. The message says where it is, and names no password."""


class StoreReplaced(StoreError):
    """The store's file is not the one that was opened: it was deleted, or another one is in its place."""
