"""Each way around header authentication that happened to somebody, tried on the running shim."""
