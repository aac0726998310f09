"""Device passwords, with the whole shim before a Navidrome."""
