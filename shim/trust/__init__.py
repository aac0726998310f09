"""Decide whether an identity is trusted: pure code without I/O, clock or event loop."""
