"""Tests on real sockets and processes."""
