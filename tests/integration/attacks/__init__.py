"""Known bypasses of header authentication, run against a real shim."""
