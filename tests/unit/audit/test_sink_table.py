"""The table of the sinks that settings turn on."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from shim.audit.errors import SinkError
from shim.audit.events import Event
from shim.audit.sinks import table
from shim.audit.sinks.table import SINKS, SinkRow, build_sinks, check_sinks
from shim.health import Check, State
from shim.settings import Settings, load
from shim.settings.model import SETTINGS

OFF = load({})
ON = load({"SHIM_SUPPORT_CONTACT": "ada"})


class Recorder:
    """A sink that goes nowhere."""

    name = "recorder"
    summary = "nowhere"

    async def write(self, events: Sequence[Event]) -> None:
        """Drop the events."""

    async def close(self) -> None:
        """Do nothing."""

    def check(self) -> Check:
        return Check("recorder", State.OK, self.summary)


def unusable(settings: Settings) -> Recorder:
    raise SinkError(f"{settings.support_contact} is no sink")


def use(monkeypatch: pytest.MonkeyPatch, *rows: SinkRow) -> None:
    monkeypatch.setattr(table, "SINKS", rows)


@pytest.mark.parametrize("row", SINKS, ids=lambda row: row.name)
def test_each_row_names_a_setting_that_is_off_by_default(row: SinkRow) -> None:
    [setting] = [each for each in SETTINGS if each.field == row.setting]
    assert not setting.default
    assert not row.is_on(OFF)


def test_only_the_sinks_that_settings_turn_on_are_built(monkeypatch: pytest.MonkeyPatch) -> None:
    sink = Recorder()
    use(monkeypatch, SinkRow("recorder", "support_contact", lambda _: sink))
    assert build_sinks(OFF) == ()
    assert check_sinks(OFF) == ()
    assert build_sinks(ON) == (sink,)
    assert check_sinks(ON) == (Check("recorder", State.OK, "nowhere"),)


def test_a_sink_that_cannot_be_used_stops_the_start_and_fails_its_check(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    use(monkeypatch, SinkRow("recorder", "support_contact", unusable))
    with pytest.raises(SinkError, match="ada is no sink"):
        build_sinks(ON)
    [check] = check_sinks(ON)
    assert (check.name, check.state, check.detail) == ("recorder", State.FAILING, "ada is no sink")
    assert check.remedy is not None and "SHIM_SUPPORT_CONTACT" in check.remedy
