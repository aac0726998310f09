"""The migrations of the store, each in a file of its own under `versions`."""
