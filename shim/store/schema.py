"""The tables of the store.

A new database is created from here, one of an earlier version is migrated. So every change here needs a
migration beside it, and `HEAD` names the last one. On PostgreSQL the two ways may leave different names of
constraints: a migration has to look them up.

Tables without mapped classes: the rows have their own value classes, and the mapper costs memory.
"""

from __future__ import annotations

from sqlalchemy import (
    Boolean,
    Column,
    Double,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    String,
    Table,
    Text,
)

HEAD = "0007"

METADATA = MetaData()

# Which Navidrome account belongs to which user of the identity provider.
BINDINGS = Table(
    "bindings",
    METADATA,
    Column("id", Integer, primary_key=True, autoincrement=True),
    # The provider's id of the user; NULL if the account was unlinked.
    Column("uid", Text, unique=True),
    Column("navidrome_id", Text, nullable=False, unique=True),
    # The account's name as Navidrome stores it, as Navidrome compares it, and the provider's last name.
    Column("user_name", Text, nullable=False),
    Column("normalized_name", Text, nullable=False, unique=True),
    Column("provider_username", Text, nullable=False),
    # Whether the shim created the account.
    Column("created_by_shim", Boolean, nullable=False),
    # `active`, `denied` or `unlinked`, and whether the account's password must still be replaced.
    Column("state", Text, nullable=False),
    Column("lock_pending", Boolean, nullable=False),
    # Seconds since the epoch.
    Column("first_seen", Double, nullable=False),
    Column("last_seen", Double, nullable=False),
    # The last identity and the last written values, as JSON.
    Column("identity", Text, nullable=False),
    Column("last_written", Text, nullable=False),
    # Incremented with each change, so that no process overwrites a change that it has not read.
    Column("version", Integer, nullable=False, server_default="0"),
    # Where the uid comes from, in words; empty if an earlier version stored it.
    Column("uid_source", Text, nullable=False, server_default=""),
)

# Which Navidrome tokens of an account are void; without a row, none. Rows remain after a binding is removed,
# and exist for accounts without a binding too.
TOKEN_RULES = Table(
    "token_rules",
    METADATA,
    Column("navidrome_id", Text, primary_key=True),
    # Every token is void while the account is locked.
    Column("locked", Boolean, nullable=False),
    # Tokens issued before or at this time are void: seconds since the epoch, by Navidrome's clock.
    Column("void_before", Double, nullable=False),
)

# Writes to Navidrome that are about to be sent, or whose result was not checked yet.
INTENTS = Table(
    "intents",
    METADATA,
    # Only one process may work on a key at a time.
    Column("key", Text, primary_key=True),
    # `create` or `write`.
    Column("kind", Text, nullable=False),
    Column("navidrome_id", Text, nullable=False),
    Column("user_name", Text, nullable=False),
    Column("uid", Text),
    # Navidrome's creation time of the account, as read before the write.
    Column("created_at", Text, nullable=False),
    # The process that began the write, and the time.
    Column("owner", Text, nullable=False),
    Column("started_at", Double, nullable=False),
    Column("uid_source", Text, nullable=False, server_default=""),
)

# Freed user names. Until old tokens have expired, only the user (`uid`) or account (`navidrome_id`) that had
# the name may have it again.
NAME_HOLDS = Table(
    "name_holds",
    METADATA,
    Column("normalized_name", Text, primary_key=True),
    Column("navidrome_id", Text, nullable=False),
    Column("uid", Text),
    Column("until", Double, nullable=False),
    Column("uid_source", Text, nullable=False, server_default=""),
)

# Results of the tests for empty passwords, for the account's state at `updated_at` (Navidrome's text).
PASSWORD_TESTS = Table(
    "password_tests",
    METADATA,
    Column("navidrome_id", Text, primary_key=True),
    Column("updated_at", Text, nullable=False),
    Column("empty", Boolean, nullable=False),
)

# Passwords of Subsonic apps. A revoked one keeps its row for a while, without its secret.
DEVICES = Table(
    "devices",
    METADATA,
    Column("id", Text, primary_key=True),
    # The person: the uid of the binding.
    Column("uid", Text, nullable=False, index=True),
    Column("name", Text, nullable=False),
    # Seconds since the epoch; NULL for never.
    Column("created", Double, nullable=False),
    Column("expires", Double),
    Column("revoked", Double),
    # Why it was revoked, a word; empty before that.
    Column("revoked_by", Text, nullable=False),
    # Last use: time, client address, and the app's name (`c`).
    Column("last_used", Double),
    Column("last_client", Text, nullable=False),
    Column("last_app", Text, nullable=False),
    # The secret with AES-256-GCM, and which key encrypted it. The associated data are `id` and `uid`.
    Column("key_id", Text, nullable=False),
    Column("nonce", LargeBinary, nullable=False),
    Column("secret", LargeBinary, nullable=False),
)

# Counters that are incremented with each change, so that other processes notice it.
CHANGE_COUNTERS = Table(
    "change_counters",
    METADATA,
    Column("name", Text, primary_key=True),
    Column("value", Integer, nullable=False),
)

# Secret keys of the control plane, in hexadecimal: `session` signs sessions and CSRF tokens.
CONTROL_KEYS = Table(
    "control_keys",
    METADATA,
    Column("name", Text, primary_key=True),
    Column("value", Text, nullable=False),
)

# The last migration that was run: Alembic's own table, as Alembic creates it.
VERSION = Table(
    "alembic_version",
    METADATA,
    Column("version_num", String(32), nullable=False),
    PrimaryKeyConstraint("version_num", name="alembic_version_pkc"),
)
