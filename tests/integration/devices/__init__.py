"""Device passwords, with the whole shim in front of a Navidrome."""
