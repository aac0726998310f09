"""Shared code of the tests: servers, clients and builders."""
