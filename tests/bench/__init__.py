"""The cost of the shim, measured beside well-known proxies."""
