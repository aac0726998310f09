"""How the store fails. In a file of its own, so that who catches it does not load the database's code."""

from __future__ import annotations


class StoreError(Exception):
    """The store can't be used. The message says where it is, and names no password."""
