"""Errors of the store, in a separate module so that importing them does not load the database code."""

from __future__ import annotations


class StoreError(Exception):
    """The store cannot be used. The message has its URL without the password."""


class StoreReplaced(StoreError):
    """The SQLite file was deleted or replaced after it was opened."""


class StoreCorrupt(StoreError):
    """The SQLite file is damaged, or is not a database."""


class UnusableTables(Exception):
    """The tables of the database are another program's, or have a version that this shim does not know."""
