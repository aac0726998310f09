"""What the shim costs, measured beside the proxies that people know."""
