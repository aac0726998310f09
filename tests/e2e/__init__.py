"""Real edges in front of the real shim, with the files of `deploy/`."""
