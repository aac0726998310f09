"""Read the text of the settings from the environment, a `.env` file and secret files.

This module does not know what a value means. It collects each mistake as a `Fault`, and no fault shows a
secret. An unknown name may be a mistyped secret: its value is shown only if the name resembles that of a
setting without a secret.

The sources of pydantic-settings are not used: they report neither file nor line of a value, accept two lines
with the same name, and ignore unknown names.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from dotenv.parser import Binding, parse_stream

from shim.settings.model import PREFIX

FILE_SUFFIX = "_FILE"
ENVIRONMENT = "environment"

_SECRET_FILE_BYTES = 65536
_SHOWN_CHARACTERS = 100
# Kubernetes adds these to a container next to a Service named `shim` or `shim-…`.
_SERVICE_LINK = re.compile(
    r"SHIM_(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)"
)
_MAYBE_SECRET = re.compile(r"SECRET|TOKEN|PASS|KEY|URL|CREDENTIAL")
_SERVICE_LINK_PORT = re.compile(r"(tcp|udp|sctp)://\S+:\d+")


@dataclass(frozen=True, slots=True)
class Fault:
    """A mistake in the settings.

    `origin` is the place of the value (`environment`, `.env line 3`, `file /run/secrets/token`). `value` is
    the text there, or None if it must not be shown. `expected` describes a valid value.
    """

    name: str
    origin: str
    value: str | None
    expected: str

    def __str__(self) -> str:
        value = "" if self.value is None else f" = {self.value}"
        return f"{self.name} ({self.origin}){value}: {self.expected}"


@dataclass(frozen=True, slots=True)
class Variable:
    """The text of a variable and its origin."""

    name: str
    text: str = field(repr=False)
    origin: str


@dataclass(frozen=True, slots=True)
class Catalogue:
    """The names of variables.

    `names`: the variable of each setting. `secrets`: those whose value is never shown and that can be set as
    `NAME_FILE`. `external`: variables of other programs that are read too.
    """

    names: frozenset[str]
    secrets: frozenset[str]
    external: frozenset[str]


def display_value(text: str) -> str:
    """Return a value for a fault: quoted, escaped, shortened, and without a password in a URL."""
    masked = re.sub(r"//.*@", "//***@", text, flags=re.DOTALL)
    masked = re.sub(r"(://[^?]*\?).*", r"\1***", masked, flags=re.DOTALL)
    if len(masked) > _SHOWN_CHARACTERS:
        masked = masked[:_SHOWN_CHARACTERS] + "…"
    return repr(masked)


def read(
    environ: Mapping[str, str], env_file: Path | None, catalogue: Catalogue
) -> tuple[dict[str, Variable], list[Fault]]:
    """Return each variable of the catalogue that is set, by name, and the faults of their origins.

    The environment overrides `env_file`, which may be missing. A secret from `NAME_FILE` appears under
    `NAME`, with the file as its origin.
    """
    faults: list[Fault] = []
    variables = {v.name: v for v in _from_file(env_file, catalogue, faults)}
    variables |= {name: Variable(name, text, ENVIRONMENT) for name, text in environ.items()}

    found: dict[str, Variable] = {}
    for variable in variables.values():
        name = variable.name
        plain = name.removesuffix(FILE_SUFFIX)
        if name in catalogue.names or name in catalogue.external:
            if name in catalogue.secrets and not variable.text.strip():
                faults.append(_empty(name, variable.origin))
            else:
                found[name] = variable
        elif name != plain and plain in catalogue.secrets:
            if plain in variables:
                faults.append(_both_set_fault(variables[plain], variable))
            elif (secret := _from_secret_file(variable, plain, faults)) is not None:
                found[plain] = secret
        elif name.upper().startswith(PREFIX) and not _is_service_link(variable):
            faults.append(_unknown(variable, catalogue))
    return found, faults


def _from_file(path: Path | None, catalogue: Catalogue, faults: list[Fault]) -> Iterable[Variable]:
    """Return the variables in a `.env` file. Text is literal: `${…}` is not replaced."""
    if path is None:
        return []
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        faults.append(
            Fault(str(path), "file", None, f"expected readable UTF-8 ({_error_text(error)})")
        )
        return []
    found: dict[str, Variable] = {}
    for binding in parse_stream(io.StringIO(text)):
        origin = f"{path} line {_line(binding)}"
        if binding.error:
            faults.append(
                Fault(str(path), f"line {_line(binding)}", None, "expected NAME=value or # comment")
            )
        elif binding.key is None or not _is_shim_variable(binding.key, catalogue):
            continue
        elif binding.value is None:
            faults.append(Fault(binding.key, origin, None, "expected NAME=value"))
        elif binding.key in found:
            expected = f"expected once, but {found[binding.key].origin} sets it too"
            faults.append(Fault(binding.key, origin, None, expected))
        else:
            found[binding.key] = Variable(binding.key, binding.value, origin)
    return found.values()


def _from_secret_file(variable: Variable, name: str, faults: list[Fault]) -> Variable | None:
    """Return the secret in the file that a `NAME_FILE` variable names, without its final line end."""
    origin = f"file {variable.text}"
    expected = "expected the path of a readable file that contains the secret"
    try:
        with Path(variable.text).open("rb") as file:
            content = file.read(_SECRET_FILE_BYTES + 1)
        text = content.decode("utf-8").rstrip("\r\n")
    except (OSError, ValueError) as error:
        reason = f"{expected} ({_error_text(error)})"
        faults.append(Fault(variable.name, variable.origin, _display_path(variable.text), reason))
        return None
    if len(content) > _SECRET_FILE_BYTES:
        reason = f"{expected}, of at most {_SECRET_FILE_BYTES} bytes"
        faults.append(Fault(variable.name, variable.origin, _display_path(variable.text), reason))
        return None
    if not text.strip():
        faults.append(_empty(name, origin))
        return None
    return Variable(name, text, origin)


def _is_shim_variable(name: str, catalogue: Catalogue) -> bool:
    return name.upper().startswith(PREFIX) or name in catalogue.external


def _is_service_link(variable: Variable) -> bool:
    if variable.origin != ENVIRONMENT:
        return False
    if _SERVICE_LINK.fullmatch(variable.name):
        return True
    return variable.name.endswith("_PORT") and bool(_SERVICE_LINK_PORT.fullmatch(variable.text))


def _unknown(variable: Variable, catalogue: Catalogue) -> Fault:
    plain = variable.name.removesuffix(FILE_SUFFIX)
    if plain != variable.name and plain in catalogue.names:
        expected = f"expected {plain}, because only secrets are read from files"
        return Fault(variable.name, variable.origin, display_value(variable.text), expected)
    files = {name + FILE_SUFFIX for name in catalogue.secrets}
    possible = sorted(catalogue.names | files)
    import difflib  # noqa: PLC0415 - only for a fault

    similar = difflib.get_close_matches(variable.name.upper(), possible, n=1, cutoff=0.7)
    if not similar:
        return Fault(variable.name, variable.origin, None, "no such setting")
    hidden = similar[0] in catalogue.secrets | files or _MAYBE_SECRET.search(variable.name.upper())
    value = None if hidden else display_value(variable.text)
    return Fault(
        variable.name, variable.origin, value, f"no such setting; did you mean {similar[0]}?"
    )


def _both_set_fault(plain: Variable, file: Variable) -> Fault:
    expected = f"expected {plain.name} or {file.name}, not both; {file.origin} sets the second"
    return Fault(plain.name, plain.origin, None, expected)


def _empty(name: str, origin: str) -> Fault:
    return Fault(
        name, origin, None, "expected a secret, but it is empty; remove the line to set none"
    )


def _line(binding: Binding) -> int:
    """Return the line of the name; the binding includes the blank lines before it."""
    text = binding.original.string
    return binding.original.line + text[: len(text) - len(text.lstrip())].count("\n")


def _display_path(text: str) -> str | None:
    """Return a path for a fault, or None if it may be the secret itself instead of a path."""
    path = Path(text)
    known = path.is_absolute() and len(path.parts) > 2 and path.parent.is_dir()
    return display_value(text) if known and text.isprintable() else None


def _error_text(error: Exception) -> str:
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    return "not UTF-8" if isinstance(error, UnicodeDecodeError) else "not a path"
