"""Whose word about an identity is believed: pure, without I/O, clock or event loop."""
