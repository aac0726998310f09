"""The tests: unit/ mirrors the package, the rest runs the thing itself."""
