"""Every setting of the shim: name, default and description, in one model.

A field is the variable's name in lower case without `SHIM_`. Its default is text, as a user would write it,
and the same parser reads it. The model only holds values: `shim.settings.parsers` reads text,
`shim.settings.validation` compares values with each other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, PrivateAttr, SecretStr
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from shim.health import DEFAULT_CONTROL_LISTEN
from shim.settings import endpoints, parsers
from shim.settings.endpoints import Endpoint, Upstream
from shim.settings.parsers import Mode, reader
from shim.settings.providers import DEFAULT, DEFAULT_PROVIDER, PRESETS

PREFIX = "SHIM_"
# Under this name the shim creates an account of its own, where no other is set.
DEFAULT_ADMIN_USERNAME = "navidrome-shim"

Connections = Annotated[int, reader(parsers.count(1, 1_000_000))]
File = Annotated[Path | None, reader(parsers.readable_file)]
Flag = Annotated[bool, reader(parsers.flag)]
Claim = Annotated[str, reader(parsers.claim_name)]
Header = Annotated[str, reader(parsers.header_name)]
OptionalHeader = Annotated[str, reader(parsers.optional_header_name)]
Line = Annotated[str | None, reader(parsers.line)]
Listen = Annotated[Endpoint, reader(endpoints.endpoint)]
Names = Annotated[tuple[str, ...], reader(parsers.names)]
Period = Annotated[float, reader(parsers.seconds(1, 604_800))]
Timeout = Annotated[float, reader(parsers.seconds(0.1, 86_400))]


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting. `default` is None if it has none; `example` can be empty; `section` is its section in the
    documentation; `reloadable`: a reload applies a new value. All others wait for a restart."""

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

    `default` is text for the field's parser, or None for "not set". `description` is text for `.env.example`
    and the documentation. `section` starts a new section there. `example` is a value to show if the default
    shows none. `reloadable`: a reload applies a new value without a restart.
    """
    return Field(
        default,
        description=description,
        json_schema_extra={"section": section, "example": example, "reloadable": reloadable},
    )


class Settings(BaseSettings):
    """The settings of one process. Frozen; `load` creates them."""

    model_config = SettingsConfigDict(
        frozen=True, extra="forbid", validate_default=True, hide_input_in_errors=True
    )

    listen: Listen = setting(
        "0.0.0.0:4534",
        "Address of the data plane, which the edge connects to: host:port, [v6]:port or unix:/path.",
        section="Listening",
    )
    listen_socket_mode: Annotated[Mode, reader(parsers.socket_mode)] = setting(
        "0660",
        "File mode of the shim's Unix sockets. Each process that may write to one is a peer `@`.",
    )
    tls_cert: File = setting(
        None,
        "PEM file with the certificate chain of the data plane; none: plain HTTP. A reload reads it again.",
    )
    tls_key: File = setting(None, "PEM file with the private key of SHIM_TLS_CERT.")
    control_listen: Listen = setting(
        DEFAULT_CONTROL_LISTEN,
        "Address of the control plane (health, metrics, API, console), in the form of SHIM_LISTEN.",
    )
    control_token: Annotated[SecretStr | None, reader(parsers.bearer_token)] = setting(
        None,
        "Token of the control plane, for the API and for signing in to the console; required if it listens "
        "beyond loopback. Without it this machine can read and reload.",
    )

    upstream: Annotated[Upstream, reader(endpoints.upstream)] = setting(
        "http://127.0.0.1:4533",
        "Address of Navidrome: http://host:port, https://host:port or unix:/path.",
        section="Navidrome",
    )
    upstream_ca: File = setting(
        None, "PEM file with the CA of Navidrome's certificate; none: the system's CAs."
    )
    base_path: Annotated[str, reader(endpoints.base_path)] = setting(
        "/", "Navidrome's base path. ND_BASEURL is read too."
    )
    reverse_proxy_user_header: Header = setting(
        "Remote-User",
        "Navidrome's user header. ND_EXTAUTH_USERHEADER and ND_REVERSEPROXYUSERHEADER are read too.",
    )

    public_url: Annotated[str | None, reader(endpoints.public_address)] = setting(
        None,
        "URL at which users open Navidrome through the edge. `navidrome-shim check` sends requests to it and "
        "finds faults of the edge; a person's own page shows it as the server for apps.",
        example="https://music.example.org",
        reloadable=True,
    )

    reverse_proxy_whitelist: Annotated[tuple[str, ...], reader(parsers.peers)] = setting(
        "",
        "Trusted peers, comma-separated: IPs, CIDRs, host names, @ (Unix-socket peers). Empty: nobody.",
        section="Trust",
        example="traefik",
        reloadable=True,
    )
    dns_refresh_seconds: Period = setting(
        "30",
        "Interval for resolving the whitelist's host names; 5 seconds while one has no address.",
        reloadable=True,
    )
    dns_stale_seconds: Period = setting(
        "300",
        "Time that the last addresses of a host name are used while it cannot be resolved.",
        reloadable=True,
    )
    untrusted_peers: Annotated[
        Literal["strip", "reject"], reader(parsers.one_of("strip", "reject"))
    ] = setting(
        "strip",
        "Requests of untrusted peers: strip their identity, or reject them.",
        reloadable=True,
    )
    real_ip_trusted_proxies: Annotated[tuple[str, ...], reader(parsers.networks)] = setting(
        "",
        "IPs and CIDRs of proxies in front of the edge, such as a CDN, to skip in X-Forwarded-For.",
        example="173.245.48.0/20",
        reloadable=True,
    )
    public_paths: Annotated[tuple[str, ...], reader(endpoints.prefixes)] = setting(
        "/rest/,/share/,/jellyfin/",
        "Path prefixes that the edge does not authenticate, comma-separated. Compared as text, "
        "without case and without the last slash: /rest/ covers /restx.",
        reloadable=True,
    )
    public_path_proof: Annotated[
        Literal["none", "secret", "jwt"], reader(parsers.one_of("none", "secret", "jwt"))
    ] = setting(
        "none",
        "Proof that an identity needs on a public path: secret or jwt; none: no identity counts there.",
        reloadable=True,
    )

    provider: Annotated[str, reader(parsers.one_of(*PRESETS))] = setting(
        DEFAULT_PROVIDER,
        f"Identity provider: {', '.join(PRESETS)}. It sets the defaults of the header, claim and token "
        "settings; the defaults in this list are authentik's. A setting that you set has priority.",
        section="Identity headers",
        reloadable=True,
    )
    identity_prefixes: Annotated[tuple[str, ...], reader(parsers.header_prefixes)] = setting(
        DEFAULT.identity_prefixes,
        "Prefixes of identity headers, comma-separated. Such headers are removed from every request.",
        reloadable=True,
    )
    username_header: OptionalHeader = setting(
        DEFAULT.username_header,
        "Header with the user name; may be the user header. Empty: none.",
        reloadable=True,
    )
    username_from_email: Annotated[
        Literal["off", "full", "local-part"], reader(parsers.one_of("off", "full", "local-part"))
    ] = setting(
        DEFAULT.username_from_email,
        "Use the e-mail address as the user name: off, full or local-part (the text before the @).",
        reloadable=True,
    )
    email_domains: Annotated[tuple[str, ...], reader(parsers.email_domains)] = setting(
        "",
        "Domains that an e-mail must have if it is the user name or the uid, comma-separated, such as "
        "example.org. Empty: any.",
        reloadable=True,
    )
    name_header: OptionalHeader = setting(
        DEFAULT.name_header, "Header with the display name. Empty: none.", reloadable=True
    )
    name_encoding: Annotated[
        Literal["auto", "percent"], reader(parsers.one_of("auto", "percent"))
    ] = setting(
        "auto",
        "Encoding of the display name: auto (UTF-8 or RFC 2047 encoded words) or percent.",
        reloadable=True,
    )
    email_header: OptionalHeader = setting(
        DEFAULT.email_header, "Header with the e-mail address. Empty: none.", reloadable=True
    )
    groups_header: OptionalHeader = setting(
        DEFAULT.groups_header, "Header with the groups. Empty: none.", reloadable=True
    )
    groups_format: Annotated[
        Literal["plain", "quoted", "json"], reader(parsers.one_of("plain", "quoted", "json"))
    ] = setting(
        "plain",
        'Form of the groups in the header: plain (a|b), quoted ("a","b") or json (["a", "b"]).',
        reloadable=True,
    )
    groups_separator: Annotated[str, reader(parsers.separator)] = setting(
        DEFAULT.groups_separator, "Separator between two groups.", reloadable=True
    )
    missing_groups: Annotated[
        Literal["reject", "none"], reader(parsers.one_of("reject", "none"))
    ] = setting(
        "reject",
        "If a group setting is set and an identity has no header or claim with the groups: reject it, or "
        "none (the user is in no group). oauth2-proxy and tinyauth send no header for a user in no group.",
        reloadable=True,
    )
    uid_source: Annotated[
        Literal["header", "username", "email", "claim"],
        reader(parsers.one_of("header", "username", "email", "claim")),
    ] = setting(
        DEFAULT.uid_source,
        "Source of the uid, to which an account is bound: header (SHIM_UID_HEADER, or the token's uid "
        "claim), claim (only the token's), username or email. With the last two, renames cannot be followed.",
        reloadable=True,
    )
    uid_header: OptionalHeader = setting(
        DEFAULT.uid_header,
        "Header with the provider's permanent id of the user (uid). Empty: none.",
        reloadable=True,
    )
    jwt_header: OptionalHeader = setting(
        DEFAULT.jwt_header, "Header with the provider's token. Empty: none.", reloadable=True
    )

    proxy_secret: Annotated[tuple[SecretStr, ...], reader(parsers.header_secrets)] = setting(
        "",
        "Secret that the edge adds on its authenticated route. Comma-separated for rotation.",
        section="Proof",
        reloadable=True,
    )
    proxy_secret_header: Header = setting(
        "X-Shim-Proxy-Secret", "Header with the proxy secret.", reloadable=True
    )
    jwt_verify: Annotated[
        Literal["off", "optional", "required"],
        reader(parsers.one_of("off", "optional", "required")),
    ] = setting(
        DEFAULT.jwt_verify,
        "Verify the provider's token: off, optional (if the request has one) or required.",
        reloadable=True,
    )
    jwks_url: Annotated[str | None, reader(endpoints.web_address)] = setting(
        None,
        "URL of the provider's key set (JWKS).",
        example="https://auth.example.org/application/o/navidrome/jwks/",
        reloadable=True,
    )
    jwks_ca: File = setting(
        None,
        "PEM file with the CA of the key set's certificate; none: the system's CAs.",
        reloadable=True,
    )
    jwks_refresh_seconds: Period = setting(
        "3600", "Interval for fetching the key set.", reloadable=True
    )
    jwt_hs256_secret: Annotated[SecretStr | None, reader(parsers.secret)] = setting(
        None,
        "Secret for HS256 tokens (authentik's client secret).",
        reloadable=True,
    )
    jwt_issuer: Line = setting(
        None,
        "Issuer that a token must have.",
        example="https://auth.example.org/application/o/navidrome/",
        reloadable=True,
    )
    jwt_audience: Names = setting(
        "",
        "Audiences, comma-separated or a JSON list. A token must have one of them.",
        reloadable=True,
    )
    jwt_algorithms: Annotated[tuple[str, ...], reader(parsers.algorithms)] = setting(
        DEFAULT.jwt_algorithms,
        "Algorithms that a token may have, comma-separated. Each key has one of its own.",
        reloadable=True,
    )
    jwt_username_claim: Claim = setting(
        DEFAULT.jwt_username_claim, "Claim with the user name. Empty: none.", reloadable=True
    )
    jwt_name_claim: Claim = setting(
        DEFAULT.jwt_name_claim, "Claim with the display name. Empty: none.", reloadable=True
    )
    jwt_email_claim: Claim = setting(
        DEFAULT.jwt_email_claim, "Claim with the e-mail address. Empty: none.", reloadable=True
    )
    jwt_groups_claim: Claim = setting(
        DEFAULT.jwt_groups_claim,
        "Claim with the list of groups, or the path to it, such as realm_access.roles. Empty: none.",
        reloadable=True,
    )
    jwt_uid_claim: Claim = setting(
        DEFAULT.jwt_uid_claim, "Claim with the uid. Empty: none.", reloadable=True
    )
    jwt_leeway: Annotated[float, reader(parsers.seconds(0, 300))] = setting(
        "30", "Allowed difference between the clocks of the provider and the shim.", reloadable=True
    )
    jwt_bearer: Flag = setting(
        "false",
        "Accept the token in `Authorization: Bearer` too, for native clients.",
        reloadable=True,
    )

    require_identity: Flag = setting(
        "false",
        "Reject requests without an identity on protected paths.",
        section="Without an identity",
        reloadable=True,
    )
    sign_in_url: Annotated[str | None, reader(endpoints.sign_in_address)] = setting(
        None,
        "URL, or path on the same host, to which a browser without an identity is redirected.",
        example="/outpost.goauthentik.io/start",
        reloadable=True,
    )
    sign_out_url: Annotated[str | None, reader(endpoints.sign_in_address)] = setting(
        None,
        "URL or path for signing out, linked on the 403 page; none: authentik's, if SHIM_SIGN_IN_URL is "
        "authentik's. ND_EXTAUTH_LOGOUTURL is read too.",
        example="/outpost.goauthentik.io/sign_out",
        reloadable=True,
    )
    local_login: Flag = setting(
        "false",
        "With SHIM_REQUIRE_IDENTITY, keep Navidrome's own login open. Other paths still need an identity.",
        reloadable=True,
    )

    provisioning: Flag = setting(
        "true", "Create and update the Navidrome accounts of identities.", section="Accounts"
    )
    provisioning_fail_mode: Annotated[
        Literal["closed", "open"], reader(parsers.one_of("closed", "open"))
    ] = setting(
        "closed",
        "While Navidrome's API fails: reject changed identities (closed), or accept known ones (open).",
    )
    provisioning_timeout: Timeout = setting(
        "10", "Maximum time that a request waits for its account."
    )
    navidrome_admin_username: Annotated[str, reader(parsers.account_name)] = setting(
        DEFAULT_ADMIN_USERNAME, "Name of the shim's own admin account; created on an empty server."
    )
    navidrome_admin_password: Annotated[SecretStr | None, reader(parsers.secret)] = setting(
        None, "Password of the shim's own account; none: the shim uses the user header instead."
    )
    bootstrap_admin: Annotated[str | None, reader(parsers.account_name)] = setting(
        None,
        "Existing Navidrome admin that the shim uses to create its own account on a server with users; used "
        "only while that account is missing or is not an admin.",
        example="admin",
    )
    bootstrap_admin_password: Annotated[SecretStr | None, reader(parsers.secret)] = setting(
        None, "Password of SHIM_BOOTSTRAP_ADMIN; none: the shim uses the user header instead."
    )
    navidrome_timeout: Timeout = setting("10", "Time limit for one call of Navidrome's API.")
    reconcile_seconds: Period = setting(
        "60", "Interval for comparing Navidrome's accounts with the bindings."
    )
    allowed_groups: Names = setting(
        "",
        "Groups that may sign in, comma-separated or a JSON list; empty: no restriction.",
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
        "Libraries of each group, as JSON. Use the name or id of a library.",
        example='{"family": ["Music Library", 2]}',
        reloadable=True,
    )
    follow_renames: Annotated[
        Literal["jwt", "headers", "off"], reader(parsers.one_of("jwt", "headers", "off"))
    ] = setting(
        "jwt",
        "Rename accounts when the provider renames users: jwt (a verified token has the new name), headers "
        "(always) or off.",
    )
    link_existing: Annotated[
        Literal["none", "users", "all"], reader(parsers.one_of("none", "users", "all"))
    ] = setting(
        "users",
        "Existing accounts that are linked to an identity of the same name: none, users (admin accounts only "
        "to members of SHIM_ADMIN_GROUPS) or all.",
    )
    protected_users: Names = setting(
        "", "Navidrome accounts that no identity may use, comma-separated or a JSON list."
    )
    name_reuse_delay_hours: Annotated[int, reader(parsers.count(0, 8760))] = setting(
        "48", "Hours that a freed user name is held; at least Navidrome's SessionTimeout."
    )
    support_contact: Line = setting(
        None,
        "Contact to show on the 403 page.",
        example="admin@example.org",
    )

    subsonic_passwords: Annotated[
        Literal["navidrome", "devices"], reader(parsers.one_of("navidrome", "devices"))
    ] = setting(
        "navidrome",
        "Passwords of Subsonic apps: navidrome (those set in Navidrome work beside device passwords) or "
        "devices (an account gets a random password when it is created or linked, so that only device "
        "passwords work).",
        section="Subsonic apps",
    )
    device_key: Annotated[SecretStr | None, reader(parsers.device_key)] = setting(
        None,
        "Key that encrypts the device passwords, 64 hexadecimal digits; to replace it: NEW,OLD. None: a file "
        "`device.key` beside the SQLite database. Required for device passwords with PostgreSQL.",
    )
    device_sign_in_days: Annotated[int, reader(parsers.count(0, 3650))] = setting(
        "90",
        "Days after which a device stops working if its owner has not signed in; 0: never.",
    )

    database_url: Annotated[SecretStr, reader(parsers.database_url)] = setting(
        "sqlite:///shim.db",
        "Database for bindings: sqlite:///file.db or postgresql+psycopg://user:password@host/name.",
        section="Records",
    )
    audit_database_url: Annotated[SecretStr | None, reader(parsers.audit_database_url)] = setting(
        None,
        "Database of the audit trail, in the form of SHIM_DATABASE_URL. Not set: audit.db beside the SQLite "
        "file, or the schema shim_audit in the PostgreSQL database. none: the log only.",
        example="sqlite:///audit.db",
    )
    audit_fail_mode: Annotated[
        Literal["open", "closed"], reader(parsers.one_of("open", "closed"))
    ] = setting(
        "open",
        "While events cannot be stored: continue (open), or after 10 seconds accept no identity (closed).",
    )
    audit_key: Annotated[tuple[SecretStr, ...], reader(parsers.header_secrets)] = setting(
        "",
        "Key of the audit trail's hashes, which show that it was not altered. Comma-separated for rotation: "
        "the first one is used for new events.",
    )
    audit_requests_days: Annotated[int, reader(parsers.count(1, 3650))] = setting(
        "90", "Days to keep events about requests."
    )
    audit_requests_max_size: Annotated[int, reader(parsers.byte_size(10 * 2**20, 2**44))] = setting(
        "1GiB", "Maximum size of the events about requests; the oldest are removed beyond it."
    )
    audit_changes_days: Annotated[int, reader(parsers.count(1, 3650))] = setting(
        "400", "Days to keep events about changes: accounts, settings, administrative actions."
    )
    log_format: Annotated[
        Literal["auto", "json", "console"], reader(parsers.one_of("auto", "json", "console"))
    ] = setting("auto", "Log format: json, console or auto (console on a terminal, else json).")
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"],
        reader(parsers.one_of("debug", "info", "warning", "error")),
    ] = setting("info", "Minimum log level: debug, info, warning or error.")
    access_log: Flag = setting(
        "false", "Log every request, not only stripped, rejected and failed ones."
    )

    notify_urls: Annotated[tuple[SecretStr, ...], reader(parsers.service_urls)] = setting(
        "",
        "Apprise URLs of the services that get notifications, separated by blanks. Needs the extra `notify`.",
        section="Notifications",
        example="ntfys://ntfy.example.org/navidrome mailtos://user:password@example.org?to=ada@example.org",
    )
    notify_kinds: Names = setting(
        "account_created,account_linked,account_unlinked,account_locked,account_readmitted,admin_action,"
        "admin_created,device_added,own_account_secured",
        "Kinds of events to notify of, whatever their severity, comma-separated; see docs/operations.md.",
    )
    notify_severity: Annotated[
        Literal["info", "warning", "error", "none"],
        reader(parsers.one_of("info", "warning", "error", "none")),
    ] = setting(
        "error",
        "Minimum severity of other events to notify of: info, warning or error; none: no other events.",
    )

    max_header_bytes: Annotated[int, reader(parsers.count(4096, 1_048_576))] = setting(
        "65536", "Maximum size of a request or response head.", section="Limits and timeouts"
    )
    max_headers: Annotated[int, reader(parsers.count(16, 10_000))] = setting(
        "100", "Maximum number of header lines in a request or response."
    )
    request_header_timeout: Timeout = setting("10", "Time limit for receiving a request head.")
    request_body_timeout: Timeout = setting("60", "Maximum pause while receiving a request body.")
    send_timeout: Timeout = setting(
        "300",
        "Maximum time that a response waits for a client that reads nothing; at least one hour for audio and "
        "video.",
    )
    idle_timeout: Timeout = setting(
        "180", "Time to keep an idle client connection; must be longer than at the edge."
    )
    upstream_connect_timeout: Timeout = setting(
        "5", "Time limit for getting a connection to Navidrome, the wait for a free one included."
    )
    upstream_response_timeout: Timeout = setting(
        "60", "Time limit for Navidrome to start its response."
    )
    max_connections: Connections = setting("4096", "Maximum number of client connections.")
    max_upstream_connections: Connections = setting(
        "4096", "Maximum number of connections to Navidrome."
    )
    max_pending_requests: Annotated[int, reader(parsers.count(0, 1_000_000))] = setting(
        "1024", "Maximum number of requests that wait for a connection to Navidrome."
    )
    shutdown_timeout: Annotated[float, reader(parsers.seconds(0, 3600))] = setting(
        "8",
        "Time limit for a stop, two seconds of it for the store. Docker kills the process after 10 seconds.",
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
        """Accept only the values that `settings.load` passes: its sources know where each was found."""
        return (init_settings,)

    # Where each value is from, by field; a default has none.
    _origins: Mapping[str, str] = PrivateAttr(default_factory=dict)

    def __eq__(self, other: object) -> bool:
        # Where a value is from makes no difference.
        return isinstance(other, Settings) and self.__dict__ == other.__dict__

    __hash__ = BaseSettings.__hash__

    def with_origins(self, origins: Mapping[str, str]) -> Settings:
        """Return the same settings, of which each field in `origins` is from there."""
        copy = self.model_copy()
        copy._origins = {**self._origins, **origins}  # noqa: SLF001 - a copy of this class
        return copy

    def origin(self, field: str) -> str:
        """Return where the value of a field is from: `environment`, `.env line 3`, `file /run/secrets/x` or
        `default`. An alias of Navidrome's is named."""
        return self._origins.get(field, "default")

    def public(self) -> dict[str, str]:
        """Return each setting by its variable's name, as a user would write it. Secrets are masked; a setting
        without a value is empty."""
        return {each.name: parsers.format_value(getattr(self, each.field)) for each in SETTINGS}


def _has_secret(annotation: Any) -> bool:
    """Return whether the value of a field is, or contains, a secret."""
    return annotation is SecretStr or any(map(_has_secret, get_args(annotation)))


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
                secret=_has_secret(info.annotation),
                reloadable=bool(extra.get("reloadable")),
            )
        )
    return tuple(found)


SETTINGS: tuple[Setting, ...] = _settings()
