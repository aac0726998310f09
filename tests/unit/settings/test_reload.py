"""Which settings a reload applies, which wait for a restart, and which combinations are rejected."""

from __future__ import annotations

from shim.app.factories import build_policy, jwks_config
from shim.settings import SETTINGS, Settings, load
from shim.settings.reload import merge_settings

RELOADABLE = {each.field for each in SETTINGS if each.reloadable}


def build_settings(**settings: str) -> Settings:
    return load({f"SHIM_{name}": value for name, value in settings.items()})


def test_equal_settings_change_nothing() -> None:
    outcome = merge_settings(build_settings(), build_settings()).outcome
    assert (outcome.faults, outcome.changed, outcome.pending_restart) == ((), (), ())


def test_settings_of_the_policy_are_applied_and_the_rest_waits() -> None:
    running = build_settings(REVERSE_PROXY_WHITELIST="10.0.0.1", MAX_CONNECTIONS="10")
    new = build_settings(
        REVERSE_PROXY_WHITELIST="10.0.0.2",
        MAX_CONNECTIONS="11",
        PROXY_SECRET="do-not-tell-0123456789",
        UPSTREAM="http://10.0.0.9:4533",
    )
    found = merge_settings(running, new)
    assert set(found.outcome.changed) == {"SHIM_REVERSE_PROXY_WHITELIST", "SHIM_PROXY_SECRET"}
    assert set(found.outcome.pending_restart) == {"SHIM_MAX_CONNECTIONS", "SHIM_UPSTREAM"}
    assert found.settings.reverse_proxy_whitelist == ("10.0.0.2",)
    assert found.settings.max_connections == 10
    assert found.settings.upstream == running.upstream
    assert set(found.outcome.changes) == {
        "SHIM_REVERSE_PROXY_WHITELIST: 10.0.0.1 → 10.0.0.2",
        "SHIM_PROXY_SECRET: not set → ***",
    }
    assert "do-not-tell" not in repr(found.outcome)


def test_a_changed_secret_is_reported_without_its_values() -> None:
    running, new = (build_settings(PROXY_SECRET=f"do-not-tell-{each}-0123456789") for each in "ab")
    outcome = merge_settings(running, new).outcome
    assert outcome.changes == ("SHIM_PROXY_SECRET: *** → another value",)
    assert "do-not-tell" not in repr(outcome)


def test_a_conflicting_combination_is_rejected() -> None:
    # The header that Navidrome reads is not changed; the secret's must not become the same one.
    running = build_settings(REVERSE_PROXY_USER_HEADER="X-User")
    new = build_settings(REVERSE_PROXY_USER_HEADER="Remote-User", PROXY_SECRET_HEADER="X-User")
    outcome = merge_settings(running, new).outcome
    assert outcome.faults and "SHIM_PROXY_SECRET_HEADER" in outcome.faults[0]


def test_settings_of_sockets_and_databases_wait_for_a_restart() -> None:
    opened = {"listen", "control_listen", "upstream", "upstream_ca", "database_url", "tls_cert"}
    assert opened <= {each.field for each in SETTINGS}
    assert RELOADABLE
    assert not RELOADABLE & opened


# Read by the policy and not reloadable, since other parts use them too.
_NOT_RELOADABLE = {
    "base_path",
    "max_headers",
    "navidrome_admin_username",
    "protected_users",
    "provisioning",
    "reverse_proxy_user_header",
}


def test_a_reload_applies_every_setting_that_only_the_policy_reads() -> None:
    read: set[str] = set()

    class Watched:
        def __init__(self, settings: Settings) -> None:
            self._settings = settings

        def __getattr__(self, name: str) -> object:
            read.add(name)
            return getattr(self._settings, name)

    settings = build_settings(
        JWT_VERIFY="required",
        JWKS_URL="https://auth.example.org/jwks",
        JWT_ISSUER="x",
        JWT_AUDIENCE="y",
    )
    build_policy(Watched(settings))  # type: ignore[arg-type]
    jwks_config(Watched(settings))  # type: ignore[arg-type]
    assert read - RELOADABLE == _NOT_RELOADABLE
