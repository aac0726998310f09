"""The presets of the providers: what they set, what overrides them, and which settings are faults."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from shim.settings import Settings, SettingsError, load
from shim.settings.identity import uid_source_name
from shim.settings.providers import DEFAULT, PRESETS, Preset, preset_values
from shim.settings.summary import summary

ROOT = Path(__file__).parents[3]
TOKEN = {
    "SHIM_JWKS_URL": "https://keys.example.org/",
    "SHIM_JWT_ISSUER": "https://idp.example.org",
    "SHIM_JWT_AUDIENCE": "navidrome",
}
CUSTOM = {"SHIM_USERNAME_HEADER": "X-User", "SHIM_UID_HEADER": "X-Uid"}
SIGNED = ("pomerium", "cloudflare-access")


def environ(provider: str, **settings: str) -> dict[str, str]:
    more = TOKEN if provider in SIGNED else CUSTOM if provider == "custom" else {}
    return {"SHIM_PROVIDER": provider, **more, **{f"SHIM_{n}": v for n, v in settings.items()}}


def faults(environ_values: dict[str, str]) -> list[str]:
    with pytest.raises(SettingsError) as raised:
        load(environ_values)
    return [str(fault) for fault in raised.value.faults]


def test_the_defaults_are_authentiks() -> None:
    assert load({"SHIM_PROVIDER": "authentik"}) == load({})
    assert load({"SHIM_PROVIDER": "Authentik"}).uid_header == DEFAULT.uid_header


@pytest.mark.parametrize("provider", PRESETS)
def test_a_preset_sets_every_setting_of_its_row(provider: str) -> None:
    explicit = CUSTOM if provider == "custom" else {}
    values = preset_values(provider)
    settings = load(environ(provider))
    as_written = settings.public()
    for field, text in values.items():
        name = f"SHIM_{field.upper()}"
        assert as_written[name] == explicit.get(name, text), field


def test_every_field_of_a_row_but_one_is_a_setting() -> None:
    names = {field.name for field in fields(Preset)}
    assert names - set(preset_values("authelia")) == {"omits_empty_groups"}


@pytest.mark.parametrize("field", preset_values("authelia"))
def test_a_setting_of_the_user_overrides_the_preset(field: str) -> None:
    values = {
        "identity_prefixes": "X-Mine-",
        "groups_separator": ";",
        "uid_source": "email",
        "username_from_email": "full",
        "jwt_verify": "optional",
        "jwt_algorithms": "RS256",
    }
    text = values.get(field, "X-Mine" if field.endswith("header") else "mine")
    environ_values = {**environ("authelia", **{field.upper(): text}), **TOKEN}
    environ_values.setdefault("SHIM_JWT_HEADER", "X-Token")
    assert load(environ_values).public()[f"SHIM_{field.upper()}"] == text
    # The rest of the row is unchanged.
    others = {**preset_values("authelia"), field: text}
    others.setdefault("jwt_header", environ_values["SHIM_JWT_HEADER"])
    others["jwt_header"] = environ_values["SHIM_JWT_HEADER"]
    assert {
        name: load(environ_values).public()[f"SHIM_{name.upper()}"] for name in others
    } == others


def test_an_empty_setting_means_that_the_provider_sends_no_such_header() -> None:
    settings = load({"SHIM_EMAIL_HEADER": "", "SHIM_JWT_NAME_CLAIM": ""})
    assert (settings.email_header, settings.jwt_name_claim) == ("", "")


@pytest.mark.parametrize(
    "path", ["realm_access.roles", "https://example.org/groups", "a.b.c-d:e/f", "groups"]
)
def test_a_claim_can_be_a_path(path: str) -> None:
    assert load({"SHIM_JWT_GROUPS_CLAIM": path}).jwt_groups_claim == path


@pytest.mark.parametrize(
    "path",
    [
        ".realm_access.roles",
        "realm_access.",
        "realm_access..roles",
        ".",
        "$.realm_access.roles",
        "realm_access.roles[*]",
        'realm_access["roles"]',
    ],
)
def test_a_path_in_another_notation_is_a_fault(path: str) -> None:
    (fault,) = faults({"SHIM_JWT_GROUPS_CLAIM": path})
    assert fault.startswith("SHIM_JWT_GROUPS_CLAIM (environment)")
    assert "such as realm_access.roles" in fault


@pytest.mark.parametrize("provider", PRESETS)
def test_the_guide_has_a_section_for_each_preset(provider: str) -> None:
    assert f"SHIM_PROVIDER={provider}" in (ROOT / "docs/providers.md").read_text()


@pytest.mark.parametrize("provider", SIGNED)
def test_a_provider_that_signs_requires_its_keys(provider: str) -> None:
    assert any("SHIM_JWKS_URL" in fault for fault in faults({"SHIM_PROVIDER": provider}))


@pytest.mark.parametrize("provider", ["tailscale", "cloudflare-access"])
@pytest.mark.parametrize("name", ["ALLOWED_GROUPS", "ADMIN_GROUPS", "LIBRARY_GROUPS"])
def test_group_settings_without_groups_are_a_fault(provider: str, name: str) -> None:
    text = '{"a": [1]}' if name == "LIBRARY_GROUPS" else "a"
    (fault,) = faults(environ(provider, **{name: text}))
    assert fault.startswith(f"SHIM_{name} (environment)")
    assert f"SHIM_PROVIDER={provider} sends none" in fault
    load(environ(provider, **{name: text}, GROUPS_HEADER="X-Groups"))
    if provider in SIGNED:
        load(environ(provider, **{name: text}, JWT_GROUPS_CLAIM="groups"))


@pytest.mark.parametrize(
    ("settings", "name", "text"),
    [
        ({"USERNAME_FROM_EMAIL": "local-part"}, "USERNAME_FROM_EMAIL", "exactly one domain"),
        (
            {"USERNAME_FROM_EMAIL": "local-part", "EMAIL_DOMAINS": "a.example,b.example"},
            "USERNAME_FROM_EMAIL",
            "exactly one domain",
        ),
        ({"EMAIL_DOMAINS": "a.example"}, "EMAIL_DOMAINS", "restricts nobody"),
        ({"UID_SOURCE": "claim"}, "UID_SOURCE", "SHIM_JWT_VERIFY=required"),
        ({"UID_SOURCE": "email", "EMAIL_HEADER": ""}, "UID_SOURCE", "SHIM_EMAIL_HEADER"),
        ({"UID_SOURCE": "header"}, "UID_HEADER", "SHIM_UID_SOURCE=username"),
        ({"USERNAME_HEADER": ""}, "USERNAME_HEADER", "SHIM_USERNAME_FROM_EMAIL"),
        ({"JWT_VERIFY": "optional"}, "JWT_HEADER", "SHIM_JWT_BEARER"),
    ],
)
def test_settings_that_could_confuse_users_are_a_fault(
    settings: dict[str, str], name: str, text: str
) -> None:
    found = faults({**environ("authelia", **settings), **TOKEN})
    assert [text in fault for fault in found if fault.startswith(f"SHIM_{name} ")] == [True], found


@pytest.mark.parametrize(
    "settings",
    [
        {"USERNAME_FROM_EMAIL": "local-part", "EMAIL_DOMAINS": "a.example"},
        {"USERNAME_FROM_EMAIL": "local-part", "UID_SOURCE": "email"},
        {"USERNAME_FROM_EMAIL": "full"},
        {"UID_SOURCE": "email", "EMAIL_DOMAINS": "a.example,b.example"},
        {"UID_SOURCE": "header", "UID_HEADER": "Remote-Sub"},
    ],
)
def test_settings_that_separate_users_are_accepted(settings: dict[str, str]) -> None:
    loaded = load(environ("authelia", **settings)).public()
    assert {name: loaded[f"SHIM_{name}"] for name in settings} == settings


@pytest.mark.parametrize(
    "text",
    ["example.org.", ".org", "exa mple.org", "\u212aexample.org", "exämple.org", "a,a", "@a.b"],
)
def test_an_invalid_domain_is_a_fault(text: str) -> None:
    environ_values = environ("authelia", UID_SOURCE="email", EMAIL_DOMAINS=text)
    assert [fault for fault in faults(environ_values) if fault.startswith("SHIM_EMAIL_DOMAINS")]


def test_an_unknown_provider_is_a_fault() -> None:
    (fault,) = faults({"SHIM_PROVIDER": "okta"})
    assert fault.startswith("SHIM_PROVIDER (environment) = 'okta': expected authentik, authelia,")


def named(**settings: str) -> str:
    return uid_source_name(load({f"SHIM_{name}": text for name, text in settings.items()}))


def test_a_uid_source_distinguishes_two_providers() -> None:
    names = [uid_source_name(load(environ(provider))) for provider in PRESETS]
    names.append(uid_source_name(load({**environ("pomerium"), "SHIM_JWT_ISSUER": "other"})))
    names.append(named(PROVIDER="authelia", UID_SOURCE="email"))
    names.remove(
        "claim sub of https://idp.example.org"
    )  # Pomerium's and Cloudflare's, of one issuer
    assert len(set(names)) == len(names)


def text_of(settings: Settings) -> str:
    return " ".join(summary(settings))


def test_the_summary_shows_the_effect_of_the_preset() -> None:
    text = text_of(
        load(environ("tailscale", USERNAME_FROM_EMAIL="local-part", EMAIL_DOMAINS="a.b"))
    )
    assert "Provider tailscale: user name from the e-mail before the @ (of a.b)" in text
    assert "display name from Tailscale-User-Name" in text
    assert "groups from nowhere" in text
    assert "bound to: user name of tailscale (not permanent" in text
    text = text_of(load(environ("pomerium")))
    assert "e-mail from the token's email" in text
    assert "the provider's token in X-Pomerium-Jwt-Assertion, always (ES256)" in text
    assert "bound to: claim sub of https://idp.example.org" in text
