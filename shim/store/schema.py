"""The tables of the store.

A new database is created from here, one of an earlier version is migrated. So every change here needs a
migration beside it, and `HEAD` names the last one. On PostgreSQL the two ways may leave different names of
constraints: a migration has to look them up.

Tables and no mapped classes: what the rows mean has values of its own, and the mapper costs memory.
"""

from __future__ import annotations

from sqlalchemy import (
    Boolean,
    Column,
    Double,
    Integer,
    MetaData,
    PrimaryKeyConstraint,
    String,
    Table,
    Text,
)

HEAD = "0004"

METADATA = MetaData()

# Which Navidrome account belongs to which person of the identity provider.
BINDINGS = Table(
    "bindings",
    METADATA,
    Column("id", Integer, primary_key=True, autoincrement=True),
    # The provider's; NULL where the account was unlinked.
    Column("uid", Text, unique=True),
    Column("navidrome_id", Text, nullable=False, unique=True),
    # The account's name as Navidrome stores it, as Navidrome compares it, and as the provider gave it last.
    Column("user_name", Text, nullable=False),
    Column("normalized_name", Text, nullable=False, unique=True),
    Column("provider_username", Text, nullable=False),
    # Whether the shim made the account.
    Column("created_by_shim", Boolean, nullable=False),
    # `active`, `denied` or `unlinked`, and whether the account's password is still to be replaced.
    Column("state", Text, nullable=False),
    Column("lock_pending", Boolean, nullable=False),
    # Seconds since the epoch.
    Column("first_seen", Double, nullable=False),
    Column("last_seen", Double, nullable=False),
    # What the provider said last and what was last written, as JSON.
    Column("identity", Text, nullable=False),
    Column("last_written", Text, nullable=False),
    # Rises with every change, so that nobody writes over what somebody else changed since it was read.
    Column("version", Integer, nullable=False, server_default="0"),
)

# Which Navidrome tokens of an account are void; an account without a row keeps all of them. Rows outlive
# bindings, and are there for accounts that nobody is linked to, too.
TOKEN_RULES = Table(
    "token_rules",
    METADATA,
    Column("navidrome_id", Text, primary_key=True),
    # Every token is void while the account is locked.
    Column("locked", Boolean, nullable=False),
    # Tokens that were not issued after this are void: seconds since the epoch, by Navidrome's clock.
    Column("void_before", Double, nullable=False),
)

# Writes to Navidrome that are about to be made, or were and have not been looked after.
INTENTS = Table(
    "intents",
    METADATA,
    # What no two processes work on at once.
    Column("key", Text, primary_key=True),
    # `create` or `write`.
    Column("kind", Text, nullable=False),
    Column("navidrome_id", Text, nullable=False),
    Column("user_name", Text, nullable=False),
    Column("uid", Text),
    # When Navidrome says that the account was made, as it was read before.
    Column("created_at", Text, nullable=False),
    # Which process began it, and when.
    Column("owner", Text, nullable=False),
    Column("started_at", Double, nullable=False),
)

# User names that became free and are given to nobody until their old tokens have ended, but to the person
# (`uid`) or the account (`navidrome_id`) that had them.
NAME_HOLDS = Table(
    "name_holds",
    METADATA,
    Column("normalized_name", Text, primary_key=True),
    Column("navidrome_id", Text, nullable=False),
    Column("uid", Text),
    Column("until", Double, nullable=False),
)

# Accounts that were tested for an empty password: as they were at `updated_at`, Navidrome's own text.
PASSWORD_TESTS = Table(
    "password_tests",
    METADATA,
    Column("navidrome_id", Text, primary_key=True),
    Column("updated_at", Text, nullable=False),
    Column("empty", Boolean, nullable=False),
)

# Numbers that rise with every change of what they are named after, so that other processes see it.
CHANGE_COUNTERS = Table(
    "change_counters",
    METADATA,
    Column("name", Text, primary_key=True),
    Column("value", Integer, nullable=False),
)

# The last migration that was run: Alembic's own table, as Alembic creates it.
VERSION = Table(
    "alembic_version",
    METADATA,
    Column("version_num", String(32), nullable=False),
    PrimaryKeyConstraint("version_num", name="alembic_version_pkc"),
)
