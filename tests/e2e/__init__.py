"""Real edges before the real shim: what a person gets who copies the files of `deploy/`."""
