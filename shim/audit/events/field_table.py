"""The fields of the events: one name for one thing, in the order in which a record has them.

A value that a client can choose comes after all others, so that a tool which reads the log line by line finds
the reason and the addresses before any text of an attacker.
"""

from __future__ import annotations

from dataclasses import dataclass

from shim.audit.sanitize import MAX_PATH


@dataclass(frozen=True, slots=True)
class Field:
    """The meaning of a field. `max_length` is the number of characters of a text, `max_items` the number of
    texts of a list."""

    meaning: str
    max_length: int = 255
    max_items: int = 32


FIELDS: dict[str, Field] = {
    # every event
    "kind": Field("kind of the event"),
    "severity": Field("`debug`, `info`, `warning` or `error`"),
    "time": Field("time in UTC, ISO 8601 with microseconds"),
    "schema": Field("version of this schema"),
    "id": Field("id of the event, a UUIDv7"),
    "index": Field("number of the event in its stream; only once it is stored"),
    "instance": Field("process that recorded the event: host name, process id and a random id"),
    "stream": Field("stream of the audit trail: `requests` or `changes`"),
    # results and addresses
    "verdict": Field("verdict of the decision"),
    "reason": Field("reason of the verdict, of the failure or of the refusal: a fixed word"),
    "status": Field("status code that the client got"),
    "peer": Field(
        "address at the other end of the connection; `*` if a summary covers several peers"
    ),
    "peer_trusted": Field("whether the peer is on `SHIM_REVERSE_PROXY_WHITELIST`"),
    "client": Field("address of the client, as the trusted peers report it"),
    "path_class": Field("`protected`, `public` or `internal`"),
    "request_id": Field("id of the request, which the client got as `X-Request-Id`"),
    "count": Field("number of events that this one represents"),
    "first_time": Field("time of the first event of a summary"),
    "last_time": Field("time of the last event of a summary"),
    "bytes_sent": Field("bytes that were sent to the client"),
    "duration_seconds": Field(
        "seconds from the first byte of the request to the last byte of the response"
    ),
    "incomplete": Field("reason why the response is not complete"),
    "trigger": Field(
        "what caused the event: `request`, `reconcile`, `start`, `reload`, `admin_action` or a signal"
    ),
    # administrative actions
    "action": Field("administrative action, for example `users.lock`"),
    "result": Field("`done`, `refused` or `failed`"),
    "actor": Field(
        "who did the administrative action: `console:NAME`, `token`, `loopback`, `command:OSUSER` or "
        "`signal`"
    ),
    "origin": Field("where the action came from: `console`, `api`, `command` or `signal`"),
    # accounts
    "navidrome_id": Field("id of the Navidrome account"),
    "admin": Field("whether the account is an admin"),
    "credentials_kept": Field("whether password and tokens of the account were not changed"),
    "allowed_stale": Field("whether the request used the account as it was last stored"),
    "first": Field("whether this is the first account of the server"),
    "device": Field("id of the device whose password was used or changed"),
    "device_count": Field("number of device passwords in use"),
    # the process and what it depends on
    "version": Field("version of the shim"),
    "listen": Field("address of the data plane"),
    "control_listen": Field("address of the control plane"),
    "process": Field("process id"),
    "uptime_seconds": Field("seconds since the start"),
    "aborted_connections": Field("number of client connections that the stop aborted"),
    "upstream": Field("address of Navidrome"),
    "down_seconds": Field("seconds that Navidrome did not respond"),
    "subject": Field("part of the policy that changed"),
    "policy_number": Field("number of the policy that is in force now"),
    "needs_attention": Field("whether an operator should check the change"),
    "added": Field("entries that were added", max_items=64),
    "removed": Field("entries that were removed", max_items=64),
    "host": Field("host name on the whitelist"),
    "addresses": Field("addresses of the host name that are used"),
    "keys": Field("keys of the provider that are used"),
    "account_count": Field("number of Navidrome accounts"),
    "binding_count": Field("number of linked accounts"),
    "sink": Field("log or store that lost events"),
    "dropped": Field("number of events that were lost"),
    # the stored trail
    "chain": Field("number of the chain of hashes; only once it is stored"),
    "database": Field("id of the audit database"),
    "checked_stream": Field("stream of the trail that the event is about"),
    "key_id": Field("public id of a key: of the hashes of the trail, or of the device passwords"),
    "first_index": Field("index of the first row"),
    "last_index": Field("index of the last row"),
    "last_hash": Field("hash of the last row, in hexadecimal"),
    # text
    "target": Field("what the action was applied to: an account, a name or a device"),
    "account": Field("name of the Navidrome account"),
    "previous_account": Field("name of the Navidrome account before"),
    "accounts": Field("names of Navidrome accounts"),
    "user": Field("user name at the identity provider, of an identity that was trusted"),
    "claimed_user": Field("user name that the request claimed and that was not trusted"),
    "device_name": Field("name that the person gave the device"),
    "app": Field("name that the Subsonic app gave itself"),
    "uid": Field("permanent id of the user at the identity provider"),
    "uid_source": Field(
        "source of the uid, in words: a header, a claim, the user name or the e-mail"
    ),
    "groups": Field("groups of the user at the identity provider", max_length=128),
    "detail": Field("reason or error in words", max_length=400),
    "remedy": Field("what to do", max_length=400),
    "changes": Field("what changed, each as `name: old → new`", max_length=400, max_items=64),
    "faults": Field("what is wrong with the settings, one line for each fault", max_length=400),
    "settings": Field(
        "settings in force as `NAME=value`; of a secret only whether it is set",
        max_length=1000,
        max_items=200,
    ),
    "summary": Field("who may sign in, who is an admin, which proof is in force", max_length=1000),
    "warnings": Field("warnings about the settings", max_length=1000),
    "method": Field("request method", max_length=32),
    "path": Field(
        "path of the request, without the query and without credentials", max_length=MAX_PATH
    ),
    "locations": Field("where the request carried the token", max_length=128),
    "removed_headers": Field(
        "names of the headers that were removed from the request", max_length=128
    ),
    "notes": Field("more information in sentences", max_length=128),
    "user_agent": Field("value of the request's `User-Agent`", max_length=200),
}
