"""Read compose files like Docker Compose: its tags, and `${NAME:-default}` filled in."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

_VARIABLE = re.compile(r"\$\{(?P<name>\w+)(?::(?P<kind>[-?])(?P<default>[^}]*))?\}")


class _Loader(yaml.SafeLoader):
    """YAML with Compose's `!override` and `!reset`, which define how files are merged."""


def _untagged(loader: _Loader, _tag: str, node: yaml.Node) -> Any:
    if isinstance(node, yaml.MappingNode):
        return loader.construct_mapping(node, deep=True)
    if isinstance(node, yaml.SequenceNode):
        return loader.construct_sequence(node, deep=True)
    return None  # `!reset null`


_Loader.add_multi_constructor("!", _untagged)


def read(path: Path, env: Mapping[str, str]) -> dict[str, Any]:
    """A compose file with its variables from `env`, which win over the defaults.

    Raises KeyError for a required variable (`${NAME:?message}`) that `env` lacks.
    """

    def value(match: re.Match[str]) -> str:
        if match["kind"] == "?" and not env.get(match["name"]):
            raise KeyError(match["name"])
        return env.get(match["name"]) or match["default"] or ""

    text = _VARIABLE.sub(value, path.read_text()).replace("$$", "$")
    read_: dict[str, Any] = yaml.load(text, _Loader)  # a SafeLoader
    return read_


def required(path: Path) -> set[str]:
    """The names of the variables that a compose file requires."""
    return {match["name"] for match in _VARIABLE.finditer(path.read_text()) if match["kind"] == "?"}


def labels(service: Mapping[str, Any]) -> dict[str, str]:
    """The labels of a service, written as a list."""
    return dict(line.split("=", 1) for line in service["labels"])
