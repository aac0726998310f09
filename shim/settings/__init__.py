"""Load the settings, or report every fault in them.

Only `load` reads the environment, the `.env` file and the secret files. The table of settings is
`shim.settings.model`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from shim.settings import endpoints, parsers
from shim.settings.endpoints import Endpoint, Upstream
from shim.settings.model import SETTINGS, Setting, Settings
from shim.settings.providers import DEFAULT_PROVIDER, PRESETS, preset_values
from shim.settings.sources import FILE_SUFFIX, Catalogue, Fault, Variable, display_value, read
from shim.settings.validation import conflicts, warnings

__all__ = [
    "ALIASES",
    "SETTINGS",
    "Endpoint",
    "Fault",
    "Setting",
    "Settings",
    "SettingsError",
    "Upstream",
    "load",
    "warnings",
]


class SettingsError(Exception):
    """The settings are invalid. `faults` has every fault; the text has one line for each."""

    def __init__(self, faults: Iterable[Fault]) -> None:
        self.faults = tuple(faults)
        super().__init__("\n".join(str(fault) for fault in self.faults))


@dataclass(frozen=True, slots=True)
class Alias:
    """A Navidrome variable with the meaning of a setting.

    Navidrome's list of trusted sources is not an alias: it names the peers of Navidrome (the shim), not the
    peers of the shim (the edge).
    """

    name: str
    field: str
    read: Callable[[str], str]
    same: Callable[[str], str]


ALIASES = (
    Alias("ND_BASEURL", "base_path", endpoints.base_path_of_url, endpoints.base_path),
    Alias("ND_EXTAUTH_USERHEADER", "reverse_proxy_user_header", parsers.header_name, str.lower),
    Alias("ND_EXTAUTH_LOGOUTURL", "sign_out_url", endpoints.sign_in_address, str),
    Alias("ND_REVERSEPROXYUSERHEADER", "reverse_proxy_user_header", parsers.header_name, str.lower),
)

_CATALOGUE = Catalogue(
    names=frozenset(each.name for each in SETTINGS),
    secrets=frozenset(each.name for each in SETTINGS if each.secret),
    external=frozenset(alias.name for alias in ALIASES),
)
_BY_FIELD = {each.field: each for each in SETTINGS}


def load(environ: Mapping[str, str], env_file: Path | None = None) -> Settings:
    """Return the settings in `environ` and, for names that it lacks, in `env_file`, which may be missing.

    Raises `SettingsError` with every fault: unknown names, invalid values, values that contradict each other.
    """
    found, faults = read(environ, env_file, _CATALOGUE)
    chosen = _with_preset(_chosen(found, faults))
    settings = _model(chosen, faults)
    faults += _conflicts(settings, chosen, _invalid_fields(faults))
    if faults:
        raise SettingsError(faults)
    return settings.with_origins({field: _origin(field, each) for field, each in chosen.items()})


def _origin(field: str, variable: Variable) -> str:
    """Return where a value is from, with the variable's name if it is an alias."""
    alias = variable.name != _BY_FIELD[field].name
    return f"{variable.name}, {variable.origin}" if alias else variable.origin


def _chosen(found: Mapping[str, Variable], faults: list[Fault]) -> dict[str, Variable]:
    """Return the variable of each field: the setting's own, or else an alias. An empty one without a default
    counts as not set."""
    chosen: dict[str, Variable] = {}
    for each in SETTINGS:
        variable = found.get(each.name)
        if variable is None:
            continue
        text = variable.text if each.secret else variable.text.strip()
        if text or each.default is not None:
            chosen[each.field] = Variable(variable.name, text, variable.origin)
    for alias in ALIASES:
        other = found.get(alias.name)
        if other is None or not other.text.strip():  # Navidrome treats an empty variable as not set
            continue
        try:
            text = alias.read(other.text.strip())
        except ValueError as error:
            faults.append(Fault(other.name, other.origin, display_value(other.text), str(error)))
            continue
        primary = chosen.setdefault(alias.field, Variable(other.name, text, other.origin))
        if _alias_differs(primary.text, text, alias):
            expected = (
                f"expected the value of {primary.name} ({primary.origin}), "
                f"{display_value(primary.text)}, or only one of them"
            )
            faults.append(Fault(other.name, other.origin, display_value(other.text), expected))
    return chosen


def _with_preset(chosen: dict[str, Variable]) -> dict[str, Variable]:
    """Return the variables with those of the provider's preset, where the user has not set them."""
    provider = chosen.get("provider")
    if provider is None or provider.text.lower() not in PRESETS.keys() - {DEFAULT_PROVIDER}:
        return chosen
    origin = f"{provider.name}={provider.text.lower()}"
    preset = {
        field: Variable(_BY_FIELD[field].name, text, origin)
        for field, text in preset_values(provider.text.lower()).items()
    }
    return {**preset, **chosen}


def _alias_differs(primary: str, other: str, alias: Alias) -> bool:
    try:
        return alias.same(primary) != alias.same(other)
    except ValueError:  # reported as a fault of its own
        return False


def _model(chosen: Mapping[str, Variable], faults: list[Fault]) -> Settings:
    """Return the model, with the default for each invalid value."""
    texts = {field: variable.text for field, variable in chosen.items()}
    try:
        return Settings.model_validate(texts)
    except ValidationError as error:
        wrong = {str(each["loc"][0]): each for each in error.errors(include_url=False)}
    for field, each in wrong.items():
        variable = chosen[field]
        error_value = each.get("ctx", {}).get("error")
        value = None if _BY_FIELD[field].secret else display_value(variable.text)
        faults.append(Fault(variable.name, variable.origin, value, str(error_value or each["msg"])))
    return Settings.model_validate({f: text for f, text in texts.items() if f not in wrong})


def _invalid_fields(faults: Iterable[Fault]) -> frozenset[str]:
    """Return the fields whose variable has a fault, so that their value is not the intended one."""
    names = {fault.name for fault in faults} | {
        fault.name.removesuffix(FILE_SUFFIX) for fault in faults
    }
    fields = {each.field for each in SETTINGS if each.name in names}
    return frozenset(fields | {alias.field for alias in ALIASES if alias.name in names})


def _conflicts(
    settings: Settings, chosen: Mapping[str, Variable], invalid_fields: frozenset[str]
) -> Iterable[Fault]:
    format_value = settings.public()
    for each in conflicts(settings):
        if invalid_fields.isdisjoint(each.fields):
            first = _BY_FIELD[each.fields[0]]
            variable = chosen.get(first.field)
            value = format_value[first.name]
            yield Fault(
                variable.name if variable else first.name,
                variable.origin if variable else "default" if value else "not set",
                display_value(value) if value and not first.secret else None,
                each.expected,
            )
