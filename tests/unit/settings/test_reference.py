"""The generated files about the settings match the table."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from shim.settings import SETTINGS, Setting, load
from shim.settings.reference import env_example, markdown

ROOT = Path(__file__).parents[3]


def test_the_example_file_is_current() -> None:
    assert (ROOT / ".env.example").read_text() == env_example(), "make docs writes it again"


def test_the_reference_is_current() -> None:
    assert (ROOT / "docs" / "settings.md").read_text() == markdown(), "make docs writes it again"


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda each: each.name)
def test_the_example_file_names_every_setting_with_its_default(setting: Setting) -> None:
    lines = env_example().splitlines()
    assert [line for line in lines if line.startswith(f"#{setting.name}=")] == [
        f"#{setting.name}={setting.default or ''}"
    ]


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda each: each.name)
def test_every_setting_has_a_description_of_one_sentence(setting: Setting) -> None:
    assert setting.description.endswith(".")
    assert setting.section


def test_the_example_file_with_every_line_uncommented_gives_the_defaults(tmp_path: Path) -> None:
    taken = re.sub(r"^#(SHIM_\w+=.+)$", r"\1", env_example(), flags=re.MULTILINE)
    (tmp_path / ".env").write_text(taken)
    assert load({}, tmp_path / ".env") == load({})


def test_every_example_is_valid(tmp_path: Path) -> None:
    examples = re.findall(r"^# Example: (SHIM_\w+=.+)$", env_example(), flags=re.MULTILINE)
    assert examples
    (tmp_path / ".env").write_text("\n".join(examples))
    assert load({}, tmp_path / ".env") != load({})
