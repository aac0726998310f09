"""Every setting of the shim: name, default and meaning, in one model; nothing else reads the environment.

A field is the variable's name in lower case without `SHIM_`. Its default is written as text, as a person
would write it, and goes through the same reader. The model holds what was set and decides nothing: how
text is read is in `shim.settings.values`, what values mean together in `shim.settings.checks`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from shim.settings import places, values
from shim.settings.places import Endpoint, Upstream
from shim.settings.values import Mode, reader

PREFIX = "SHIM_"
SECRETS = frozenset(
    {
        "control_token",
        "database_url",
        "jwt_hs256_secret",
        "navidrome_admin_password",
        "proxy_secret",
    }
)

Connections = Annotated[int, reader(values.count(1, 1_000_000))]
File = Annotated[Path | None, reader(values.readable_file)]
Flag = Annotated[bool, reader(values.flag)]
Header = Annotated[str, reader(values.header_name)]
Line = Annotated[str | None, reader(values.line)]
Listen = Annotated[Endpoint, reader(places.endpoint)]
Period = Annotated[float, reader(values.seconds(1, 604_800))]
Timeout = Annotated[float, reader(values.seconds(0.1, 86_400))]
Words = Annotated[tuple[str, ...], reader(values.words)]


@dataclass(frozen=True, slots=True)
class Setting:
    """What there is to know of one setting. `default` is None where nothing is set; `example` may be
    empty; `section` is the part of the documentation that it stands in."""

    name: str
    field: str
    default: str | None
    means: str
    section: str
    example: str
    secret: bool


def setting(default: str | None, means: str, *, section: str = "", written: str = "") -> Any:
    """A field of the model.

    `default` is text for the field's reader, or None for "not set"; `means` is one sentence for
    `.env.example` and the documentation; `section` opens a new part of them; `written` is an example
    where the default shows none.
    """
    return Field(
        default, description=means, json_schema_extra={"section": section, "example": written}
    )


class Settings(BaseSettings):
    """What the shim was told. Frozen; made by `load`."""

    model_config = SettingsConfigDict(
        frozen=True, extra="forbid", validate_default=True, hide_input_in_errors=True
    )

    listen: Listen = setting(
        "0.0.0.0:4534",
        "Where the edge reaches the shim: host:port, [v6]:port or unix:/path.",
        section="Listening",
    )
    listen_socket_mode: Annotated[Mode, reader(values.socket_mode)] = setting(
        "0660",
        "Mode of the Unix sockets that the shim listens on; whoever can write is a peer `@`.",
    )
    tls_cert: File = setting(
        None,
        "PEM file with the certificate chain of the data plane; none: plain HTTP. Read anew by a reload.",
    )
    tls_key: File = setting(None, "PEM file with the key of that certificate.")
    control_listen: Listen = setting(
        "127.0.0.1:4535", "Where health, metrics and the audit pages are: as for SHIM_LISTEN."
    )
    control_token: Annotated[SecretStr | None, reader(values.bearer_token)] = setting(
        None, "Bearer token of the control plane; required where it listens beyond loopback."
    )

    upstream: Annotated[Upstream, reader(places.upstream)] = setting(
        "http://127.0.0.1:4533",
        "Navidrome: http://host:port, https://host:port or unix:/path.",
        section="Navidrome",
    )
    upstream_ca: File = setting(
        None, "PEM file with the authority that signed Navidrome's certificate; none: the system's."
    )
    base_path: Annotated[str, reader(places.base_path)] = setting(
        "/", "Navidrome's base path; ND_BASEURL is read too."
    )
    reverse_proxy_user_header: Header = setting(
        "Remote-User",
        "Navidrome's user header; ND_EXTAUTH_USERHEADER and ND_REVERSEPROXYUSERHEADER are read too.",
    )

    reverse_proxy_whitelist: Annotated[tuple[str, ...], reader(values.peers)] = setting(
        "",
        "Peers whose identity headers count: IPs, CIDRs, host names and @ (Unix-socket peers), "
        "comma-separated; empty: nobody.",
        section="Trust",
        written="traefik",
    )
    whitelist_refresh_seconds: Period = setting(
        "30",
        "How often host names of the list are resolved anew; every 5 seconds while one has no address.",
    )
    whitelist_keep_seconds: Period = setting(
        "300", "How long the last addresses of a host name count while it cannot be resolved."
    )
    untrusted_peers: Annotated[
        Literal["strip", "reject"], reader(values.one_of("strip", "reject"))
    ] = setting("strip", "Peers that are not on the list: strip what they claim, or reject them.")
    forwarding_hops: Annotated[tuple[str, ...], reader(values.networks)] = setting(
        "",
        "IPs and CIDRs of proxies before the edge (a CDN) that the client's address is looked for behind.",
        written="173.245.48.0/20",
    )
    public_paths: Annotated[tuple[str, ...], reader(places.prefixes)] = setting(
        "/rest/,/share/,/jellyfin/",
        "Path prefixes that the edge leaves unauthenticated, comma-separated.",
    )
    public_path_proof: Annotated[
        Literal["none", "secret", "jwt"], reader(values.one_of("none", "secret", "jwt"))
    ] = setting("none", "Proof that lets an identity count on a public path: none, secret or jwt.")

    identity_prefixes: Annotated[tuple[str, ...], reader(values.header_prefixes)] = setting(
        "X-authentik-",
        "Prefixes of the headers that are removed from every request, comma-separated.",
        section="Identity headers",
    )
    username_header: Header = setting("X-authentik-username", "Header with the user's name.")
    name_header: Header = setting("X-authentik-name", "Header with the display name.")
    email_header: Header = setting("X-authentik-email", "Header with the e-mail address.")
    groups_header: Header = setting("X-authentik-groups", "Header with the groups.")
    groups_separator: Annotated[str, reader(values.separator)] = setting(
        "|", "What stands between two groups."
    )
    uid_header: Header = setting(
        "X-authentik-uid", "Header with the provider's stable id of the user."
    )
    jwt_header: Header = setting("X-authentik-jwt", "Header with the provider's token.")

    proxy_secret: Annotated[tuple[SecretStr, ...], reader(values.header_secrets)] = setting(
        "",
        "Secret that the edge adds on its authenticated route; several, comma-separated, for rotation.",
        section="Proof",
    )
    proxy_secret_header: Header = setting("X-Shim-Proxy-Secret", "Header that carries that secret.")
    jwt_verify: Annotated[
        Literal["off", "optional", "required"], reader(values.one_of("off", "optional", "required"))
    ] = setting(
        "off", "Verify the provider's token: off, optional (where there is one) or required."
    )
    jwks_url: Annotated[str | None, reader(places.web_address)] = setting(
        None,
        "Address of the provider's key set.",
        written="https://auth.example.org/application/o/navidrome/jwks/",
    )
    jwks_ca: File = setting(
        None,
        "PEM file with the authority that signed the key set's certificate; none: the system's.",
    )
    jwks_refresh_seconds: Period = setting("3600", "How often the key set is fetched anew.")
    jwks_min_interval: Period = setting(
        "30", "Least time between two fetches for keys that are unknown."
    )
    jwks_max_age: Period = setting(
        "86400", "How long keys count while the key set cannot be fetched."
    )
    jwks_max_bytes: Annotated[int, reader(values.count(1024, 16_777_216))] = setting(
        "262144", "Most bytes of a key set."
    )
    jwks_timeout: Timeout = setting("5", "Time for one fetch of the key set.")
    jwt_hs256_secret: Annotated[SecretStr | None, reader(values.secret)] = setting(
        None, "Secret of tokens that are signed with HS256 (authentik's client secret)."
    )
    jwt_issuer: Line = setting(
        None,
        "Issuer that a token must name.",
        written="https://auth.example.org/application/o/navidrome/",
    )
    jwt_audience: Words = setting("", "Audiences, comma-separated, one of which a token must name.")
    jwt_leeway: Annotated[float, reader(values.seconds(0, 300))] = setting(
        "30", "How far the provider's clock may be off."
    )
    jwt_bearer: Flag = setting(
        "false", "Take the token from `Authorization: Bearer` as well, for native clients."
    )

    require_identity: Flag = setting(
        "false",
        "Refuse requests without an identity on protected paths.",
        section="Without an identity",
    )
    sign_in_url: Annotated[str | None, reader(places.sign_in_address)] = setting(
        None,
        "Where pages are sent that need an identity: an address, or a path on the host that was asked.",
        written="/outpost.goauthentik.io/start",
    )
    local_login: Flag = setting(
        "false",
        "Leave Navidrome's login call open while SHIM_REQUIRE_IDENTITY is on; its pages and its API need an "
        "identity all the same.",
    )

    provisioning: Flag = setting(
        "true", "Create and update Navidrome accounts as identities arrive.", section="Accounts"
    )
    provisioning_failure: Annotated[
        Literal["closed", "open"], reader(values.one_of("closed", "open"))
    ] = setting(
        "closed",
        "While Navidrome's API fails: refuse changed accounts (closed), or let known ones pass (open).",
    )
    provisioning_timeout: Timeout = setting("10", "Longest that a request waits for its account.")
    max_provisioning: Connections = setting(
        "64", "Most accounts that are created or changed at one time."
    )
    navidrome_admin_username: Annotated[str, reader(values.account_name)] = setting(
        "navidrome-shim", "Admin account that the shim acts as; created on an empty server."
    )
    navidrome_admin_password: Annotated[SecretStr | None, reader(values.secret)] = setting(
        None, "Its password, if the shim shall log in; none: it acts by the user header."
    )
    navidrome_timeout: Timeout = setting("10", "Time for one call of Navidrome's API.")
    reconcile_seconds: Period = setting(
        "60", "How often Navidrome's accounts are held against the bindings."
    )
    allowed_groups: Words = setting("", "Groups that may in, comma-separated; empty: everybody.")
    admin_groups: Words = setting("", "Groups whose members are Navidrome admins, comma-separated.")
    library_groups: Annotated[
        Mapping[str, tuple[str | int, ...]], reader(values.library_groups)
    ] = setting(
        "{}",
        "Libraries by group, as JSON; a library is its name or id.",
        written='{"family": ["Music Library", 2]}',
    )
    follow_renames: Annotated[
        Literal["jwt", "headers", "off"], reader(values.one_of("jwt", "headers", "off"))
    ] = setting(
        "jwt",
        "Rename accounts as the provider does: if a verified token says so, by headers, or off.",
    )
    link_existing: Annotated[
        Literal["none", "users", "all"], reader(values.one_of("none", "users", "all"))
    ] = setting(
        "users",
        "Existing accounts that may be claimed by name: none, users (admins' by SHIM_ADMIN_GROUPS) or all.",
    )
    protected_users: Words = setting(
        "", "Navidrome accounts that no identity may be, comma-separated."
    )
    name_rest_hours: Annotated[int, reader(values.count(0, 8760))] = setting(
        "48", "How long a freed user name is given to nobody: Navidrome's SessionTimeout."
    )
    contact: Line = setting(
        None,
        "Whom to ask, said on the page of a person who may not in.",
        written="admin@example.org",
    )

    database_url: Annotated[SecretStr, reader(values.database_url)] = setting(
        "sqlite:///shim.db",
        "Bindings and audit trail: sqlite:///file.db or postgresql+psycopg://user:password@host/name.",
        section="Records",
    )
    audit_retention_days: Annotated[int, reader(values.count(1, 3650))] = setting(
        "90", "Days that the audit trail is kept."
    )
    log_format: Annotated[
        Literal["auto", "json", "console"], reader(values.one_of("auto", "json", "console"))
    ] = setting(
        "auto", "Log lines as json or for a console; auto: console on a terminal, else json."
    )
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"],
        reader(values.one_of("debug", "info", "warning", "error")),
    ] = setting("info", "Least weight of a line in the log: debug, info, warning or error.")
    access_log: Flag = setting("false", "Log every request, not only the remarkable ones.")

    max_header_bytes: Annotated[int, reader(values.count(4096, 1_048_576))] = setting(
        "65536", "Most bytes of a request's or an answer's head.", section="Limits and timeouts"
    )
    max_headers: Annotated[int, reader(values.count(16, 10_000))] = setting(
        "100", "Most header lines of a request or an answer."
    )
    head_timeout: Timeout = setting("10", "Time for a client to send a request's head.")
    body_timeout: Timeout = setting("60", "Longest pause within a request's body.")
    stall_timeout: Timeout = setting(
        "300", "Longest that an answer waits for a client who reads nothing."
    )
    idle_timeout: Timeout = setting(
        "180", "How long an idle client connection is kept; longer than the edge keeps its own."
    )
    connect_timeout: Timeout = setting(
        "5", "Time to connect to Navidrome, waiting for a connection included."
    )
    answer_timeout: Timeout = setting("60", "Time for Navidrome to begin its answer.")
    upstream_idle_timeout: Timeout = setting(
        "30", "How long an idle connection to Navidrome is used again."
    )
    max_connections: Connections = setting("4096", "Most client connections of one process.")
    max_upstream_connections: Connections = setting(
        "4096", "Most connections of one process to Navidrome."
    )
    max_waiting: Annotated[int, reader(values.count(0, 1_000_000))] = setting(
        "1024", "Most requests of one process that wait for a connection to Navidrome."
    )
    grace_timeout: Annotated[float, reader(values.seconds(0, 3600))] = setting(
        "10", "Time for what is under way to end when the shim stops."
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Only what `settings.load` hands over, since its own source says where each value was found."""
        return (init_settings,)

    def public(self) -> dict[str, str]:
        """Every setting by its variable's name, as it would be written; secrets are masked, and what is
        not set is empty."""
        return {each.name: values.written(getattr(self, each.field)) for each in SETTINGS}


def _settings() -> tuple[Setting, ...]:
    found: list[Setting] = []
    section = ""
    for name, info in Settings.model_fields.items():
        extra = info.json_schema_extra if isinstance(info.json_schema_extra, dict) else {}
        section = str(extra.get("section", "")) or section
        found.append(
            Setting(
                name=PREFIX + name.upper(),
                field=name,
                default=info.default,
                means=info.description or "",
                section=section,
                example=str(extra.get("example", "")),
                secret=name in SECRETS,
            )
        )
    return tuple(found)


SETTINGS: tuple[Setting, ...] = _settings()
