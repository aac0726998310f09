"""Pure HTTP/1 syntax: no policy, no I/O, no event loop."""
