"""Every setting of the shim: name, default and meaning, in one model; nothing else reads the environment.

A field is the variable's name in lower case without `SHIM_`. Its default is written as text, as a person
would write it, and goes through the same reader. The model holds what was set and decides nothing: how
text is read is in `shim.settings.parsers`, what values mean together in `shim.settings.validation`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr

from shim.health import DEFAULT_CONTROL_LISTEN
from shim.settings import endpoints, parsers
from shim.settings.endpoints import Endpoint, Upstream
from shim.settings.parsers import Mode, reader

PREFIX = "SHIM_"
# Under this name the shim creates an account of its own, where no other is set.
DEFAULT_ADMIN_USERNAME = "navidrome-shim"
SECRETS = frozenset(
    {
        "bootstrap_admin_password",
        "control_token",
        "database_url",
        "jwt_hs256_secret",
        "navidrome_admin_password",
        "proxy_secret",
    }
)

Connections = Annotated[int, reader(parsers.count(1, 1_000_000))]
File = Annotated[Path | None, reader(parsers.readable_file)]
Flag = Annotated[bool, reader(parsers.flag)]
Header = Annotated[str, reader(parsers.header_name)]
Line = Annotated[str | None, reader(parsers.line)]
Listen = Annotated[Endpoint, reader(endpoints.endpoint)]
Names = Annotated[tuple[str, ...], reader(parsers.names)]
Period = Annotated[float, reader(parsers.seconds(1, 604_800))]
Timeout = Annotated[float, reader(parsers.seconds(0.1, 86_400))]


@dataclass(frozen=True, slots=True)
class Setting:
    """What there is to know of one setting. `default` is None where nothing is set; `example` may be
    empty; `section` is the part of the documentation that it stands in; `reloadable`: a reload applies a
    new value, all others wait for a restart."""

    name: str
    field: str
    default: str | None
    description: str
    section: str
    example: str
    secret: bool
    reloadable: bool


def setting(
    default: str | None,
    description: str,
    *,
    section: str = "",
    example: str = "",
    reloadable: bool = False,
) -> Any:
    """Return a field of the model.

    `default` is text for the field's reader, or None for "not set"; `description` is one sentence for
    `.env.example` and the documentation; `section` opens a new part of them; `example` is one where the
    default shows none; `reloadable`: a reload applies a new value without a restart.
    """
    return Field(
        default,
        description=description,
        json_schema_extra={"section": section, "example": example, "reloadable": reloadable},
    )


class Settings(BaseModel):
    """What the shim was told. Frozen; made by `load`."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, hide_input_in_errors=True
    )

    listen: Listen = setting(
        "0.0.0.0:4534",
        "Where the edge reaches the shim: host:port, [v6]:port or unix:/path.",
        section="Listening",
    )
    listen_socket_mode: Annotated[Mode, reader(parsers.socket_mode)] = setting(
        "0660",
        "Mode of the Unix sockets that the shim listens on; whoever can write is a peer `@`.",
    )
    tls_cert: File = setting(
        None,
        "PEM file with the certificate chain of the data plane; none: plain HTTP. Read again by a reload.",
    )
    tls_key: File = setting(None, "PEM file with the key of that certificate.")
    control_listen: Listen = setting(
        DEFAULT_CONTROL_LISTEN, "Where health, metrics and the audit pages are: as for SHIM_LISTEN."
    )
    control_token: Annotated[SecretStr | None, reader(parsers.bearer_token)] = setting(
        None, "Bearer token of the control plane; required where it listens beyond loopback."
    )

    upstream: Annotated[Upstream, reader(endpoints.upstream)] = setting(
        "http://127.0.0.1:4533",
        "Navidrome: http://host:port, https://host:port or unix:/path.",
        section="Navidrome",
    )
    upstream_ca: File = setting(
        None, "PEM file with the authority that signed Navidrome's certificate; none: the system's."
    )
    base_path: Annotated[str, reader(endpoints.base_path)] = setting(
        "/", "Navidrome's base path; ND_BASEURL is read too."
    )
    reverse_proxy_user_header: Header = setting(
        "Remote-User",
        "Navidrome's user header; ND_EXTAUTH_USERHEADER and ND_REVERSEPROXYUSERHEADER are read too.",
    )

    reverse_proxy_whitelist: Annotated[tuple[str, ...], reader(parsers.peers)] = setting(
        "",
        "Peers whose identity headers count: IPs, CIDRs, host names and @ (Unix-socket peers), "
        "comma-separated; empty: nobody.",
        section="Trust",
        example="traefik",
        reloadable=True,
    )
    dns_refresh_seconds: Period = setting(
        "30",
        "How often host names of the list are resolved again; every 5 seconds while one has no address.",
        reloadable=True,
    )
    dns_stale_seconds: Period = setting(
        "300",
        "How long the last addresses of a host name count while it cannot be resolved.",
        reloadable=True,
    )
    untrusted_peers: Annotated[
        Literal["strip", "reject"], reader(parsers.one_of("strip", "reject"))
    ] = setting("strip", "Untrusted peers: strip what they claim, or reject them.", reloadable=True)
    real_ip_trusted_proxies: Annotated[tuple[str, ...], reader(parsers.networks)] = setting(
        "",
        "IPs and CIDRs of proxies before the edge (a CDN) that the client's address is looked for behind.",
        example="173.245.48.0/20",
        reloadable=True,
    )
    public_paths: Annotated[tuple[str, ...], reader(endpoints.prefixes)] = setting(
        "/rest/,/share/,/jellyfin/",
        "Path prefixes that the edge leaves unauthenticated, comma-separated; compared without case, without "
        "their last slash and without a boundary: /rest/ covers /restx.",
        reloadable=True,
    )
    public_path_proof: Annotated[
        Literal["none", "secret", "jwt"], reader(parsers.one_of("none", "secret", "jwt"))
    ] = setting(
        "none",
        "Proof that lets an identity count on a public path: none, secret or jwt.",
        reloadable=True,
    )

    identity_prefixes: Annotated[tuple[str, ...], reader(parsers.header_prefixes)] = setting(
        "X-authentik-",
        "Prefixes of the headers that are removed from every request, comma-separated.",
        section="Identity headers",
        reloadable=True,
    )
    username_header: Header = setting(
        "X-authentik-username", "Header with the user's name.", reloadable=True
    )
    name_header: Header = setting(
        "X-authentik-name", "Header with the display name.", reloadable=True
    )
    name_encoding: Annotated[
        Literal["auto", "percent"], reader(parsers.one_of("auto", "percent"))
    ] = setting(
        "auto",
        "How the display name is encoded: auto (UTF-8, or the encoded words of RFC 2047) or percent.",
        reloadable=True,
    )
    email_header: Header = setting(
        "X-authentik-email", "Header with the e-mail address.", reloadable=True
    )
    groups_header: Header = setting(
        "X-authentik-groups", "Header with the groups.", reloadable=True
    )
    groups_separator: Annotated[str, reader(parsers.separator)] = setting(
        "|", "What stands between two groups.", reloadable=True
    )
    uid_header: Header = setting(
        "X-authentik-uid", "Header with the provider's stable id of the user.", reloadable=True
    )
    jwt_header: Header = setting(
        "X-authentik-jwt", "Header with the provider's token.", reloadable=True
    )

    proxy_secret: Annotated[tuple[SecretStr, ...], reader(parsers.header_secrets)] = setting(
        "",
        "Secret that the edge adds on its authenticated route; several, comma-separated, for rotation.",
        section="Proof",
        reloadable=True,
    )
    proxy_secret_header: Header = setting(
        "X-Shim-Proxy-Secret", "Header that carries that secret.", reloadable=True
    )
    jwt_verify: Annotated[
        Literal["off", "optional", "required"],
        reader(parsers.one_of("off", "optional", "required")),
    ] = setting(
        "off",
        "Verify the provider's token: off, optional (where there is one) or required.",
        reloadable=True,
    )
    jwks_url: Annotated[str | None, reader(endpoints.web_address)] = setting(
        None,
        "Address of the provider's key set.",
        example="https://auth.example.org/application/o/navidrome/jwks/",
        reloadable=True,
    )
    jwks_ca: File = setting(
        None,
        "PEM file with the authority that signed the key set's certificate; none: the system's.",
        reloadable=True,
    )
    jwks_refresh_seconds: Period = setting(
        "3600", "How often the key set is fetched again.", reloadable=True
    )
    jwks_min_interval: Period = setting(
        "30", "Least time between two fetches for keys that are unknown.", reloadable=True
    )
    jwt_hs256_secret: Annotated[SecretStr | None, reader(parsers.secret)] = setting(
        None,
        "Secret of tokens that are signed with HS256 (authentik's client secret).",
        reloadable=True,
    )
    jwt_issuer: Line = setting(
        None,
        "Issuer that a token must name.",
        example="https://auth.example.org/application/o/navidrome/",
        reloadable=True,
    )
    jwt_audience: Names = setting(
        "",
        "Audiences, comma-separated or a JSON list, one of which a token must name.",
        reloadable=True,
    )
    jwt_leeway: Annotated[float, reader(parsers.seconds(0, 300))] = setting(
        "30", "How far the provider's clock may be off.", reloadable=True
    )
    jwt_bearer: Flag = setting(
        "false",
        "Take the token from `Authorization: Bearer` as well, for native clients.",
        reloadable=True,
    )

    require_identity: Flag = setting(
        "false",
        "Refuse requests without an identity on protected paths.",
        section="Without an identity",
        reloadable=True,
    )
    sign_in_url: Annotated[str | None, reader(endpoints.sign_in_address)] = setting(
        None,
        "Where pages are sent that need an identity: an address, or a path on the host that was asked.",
        example="/outpost.goauthentik.io/start",
        reloadable=True,
    )
    sign_out_url: Annotated[str | None, reader(endpoints.sign_in_address)] = setting(
        None,
        "Where the 403 page lets a person sign out; none: authentik's, if SHIM_SIGN_IN_URL is authentik's. "
        "ND_EXTAUTH_LOGOUTURL is read too.",
        example="/outpost.goauthentik.io/sign_out",
        reloadable=True,
    )
    local_login: Flag = setting(
        "false",
        "Leave Navidrome's login call open while SHIM_REQUIRE_IDENTITY is on; its pages and its API need an "
        "identity all the same.",
        reloadable=True,
    )

    provisioning: Flag = setting(
        "true", "Create and update Navidrome accounts as identities arrive.", section="Accounts"
    )
    provisioning_fail_mode: Annotated[
        Literal["closed", "open"], reader(parsers.one_of("closed", "open"))
    ] = setting(
        "closed",
        "While Navidrome's API fails: refuse changed accounts (closed), or let known ones pass (open).",
    )
    provisioning_timeout: Timeout = setting("10", "Longest that a request waits for its account.")
    navidrome_admin_username: Annotated[str, reader(parsers.account_name)] = setting(
        DEFAULT_ADMIN_USERNAME, "Admin account that the shim acts as; created on an empty server."
    )
    navidrome_admin_password: Annotated[SecretStr | None, reader(parsers.secret)] = setting(
        None, "Its password, if the shim shall log in; none: it acts by the user header."
    )
    bootstrap_admin: Annotated[str | None, reader(parsers.account_name)] = setting(
        None,
        "Existing Navidrome admin that creates the shim's own account on a server with users; used only "
        "while that account is missing or no admin.",
        example="admin",
    )
    bootstrap_admin_password: Annotated[SecretStr | None, reader(parsers.secret)] = setting(
        None, "Password of that admin; none: the user header is enough."
    )
    navidrome_timeout: Timeout = setting("10", "Time for one call of Navidrome's API.")
    reconcile_seconds: Period = setting(
        "60", "How often Navidrome's accounts are held against the bindings."
    )
    allowed_groups: Names = setting(
        "",
        "Groups allowed to sign in, comma-separated or a JSON list; empty: no restriction.",
        example='["CN=family,OU=Groups"]',
        reloadable=True,
    )
    admin_groups: Names = setting(
        "",
        "Groups whose members are Navidrome admins, comma-separated or a JSON list.",
        example='["CN=music-admins,OU=Groups"]',
        reloadable=True,
    )
    library_groups: Annotated[
        Mapping[str, tuple[str | int, ...]], reader(parsers.library_groups)
    ] = setting(
        "{}",
        "Libraries by group, as JSON; a library is its name or id.",
        example='{"family": ["Music Library", 2]}',
        reloadable=True,
    )
    follow_renames: Annotated[
        Literal["jwt", "headers", "off"], reader(parsers.one_of("jwt", "headers", "off"))
    ] = setting(
        "jwt",
        "Rename accounts as the provider does: if a verified token says so, by headers, or off.",
    )
    link_existing: Annotated[
        Literal["none", "users", "all"], reader(parsers.one_of("none", "users", "all"))
    ] = setting(
        "users",
        "Existing accounts that may be claimed by name: none, users (admins' by SHIM_ADMIN_GROUPS) or all.",
    )
    protected_users: Names = setting(
        "", "Navidrome accounts that no identity may be, comma-separated or a JSON list."
    )
    name_reuse_delay_hours: Annotated[int, reader(parsers.count(0, 8760))] = setting(
        "48", "How long a freed user name is given to nobody: Navidrome's SessionTimeout."
    )
    support_contact: Line = setting(
        None,
        "Contact shown on the 403 page.",
        example="admin@example.org",
    )

    database_url: Annotated[SecretStr, reader(parsers.database_url)] = setting(
        "sqlite:///shim.db",
        "Bindings and audit trail: sqlite:///file.db or postgresql+psycopg://user:password@host/name.",
        section="Records",
    )
    audit_retention_days: Annotated[int, reader(parsers.count(1, 3650))] = setting(
        "90", "Days that the audit trail is kept."
    )
    log_format: Annotated[
        Literal["auto", "json", "console"], reader(parsers.one_of("auto", "json", "console"))
    ] = setting(
        "auto", "Log lines as json or for a console; auto: console on a terminal, else json."
    )
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"],
        reader(parsers.one_of("debug", "info", "warning", "error")),
    ] = setting("info", "Minimum log level: debug, info, warning or error.")
    access_log: Flag = setting("false", "Log every request, not only the remarkable ones.")

    max_header_bytes: Annotated[int, reader(parsers.count(4096, 1_048_576))] = setting(
        "65536", "Most bytes of a request's or an answer's head.", section="Limits and timeouts"
    )
    max_headers: Annotated[int, reader(parsers.count(16, 10_000))] = setting(
        "100", "Most header lines of a request or an answer."
    )
    request_header_timeout: Timeout = setting("10", "Time for a client to send a request's head.")
    request_body_timeout: Timeout = setting("60", "Longest pause within a request's body.")
    send_timeout: Timeout = setting(
        "300",
        "Longest that a response waits for a client that reads nothing; audio and video wait at least an "
        "hour.",
    )
    idle_timeout: Timeout = setting(
        "180", "How long an idle client connection is kept; longer than the edge keeps its own."
    )
    upstream_connect_timeout: Timeout = setting(
        "5", "Time to connect to Navidrome, waiting for a connection included."
    )
    upstream_response_timeout: Timeout = setting("60", "Time for Navidrome to begin its answer.")
    max_connections: Connections = setting("4096", "Most client connections of one process.")
    max_upstream_connections: Connections = setting(
        "4096", "Most connections of one process to Navidrome."
    )
    max_pending_requests: Annotated[int, reader(parsers.count(0, 1_000_000))] = setting(
        "1024", "Most requests of one process that wait for a connection to Navidrome."
    )
    shutdown_timeout: Annotated[float, reader(parsers.seconds(0, 3600))] = setting(
        "8",
        "Time for everything to end when the shim stops, two seconds of it for the store. Docker kills after "
        "10 seconds.",
    )

    def public(self) -> dict[str, str]:
        """Every setting by its variable's name, as it would be written; secrets are masked, and what is
        not set is empty."""
        return {each.name: parsers.format_value(getattr(self, each.field)) for each in SETTINGS}


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
                description=info.description or "",
                section=section,
                example=str(extra.get("example", "")),
                secret=name in SECRETS,
                reloadable=bool(extra.get("reloadable")),
            )
        )
    return tuple(found)


SETTINGS: tuple[Setting, ...] = _settings()
