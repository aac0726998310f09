"""Standard names: columns, tables and states that had others."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_TABLES = (("name_rests", "name_holds"), ("marks", "change_counters"))
# By the tables' new names.
_COLUMNS = (
    ("bindings", "made", "created_by_shim"),
    ("bindings", "open_door", "lock_pending"),
    ("bindings", "claimed_name", "provider_username"),
    ("bindings", "folded_name", "normalized_name"),
    ("bindings", "written", "last_written"),
    ("intents", "since", "started_at"),
    ("name_holds", "folded_name", "normalized_name"),
)
_STATES = (("released", "unlinked"), ("refused", "denied"))


def upgrade() -> None:
    for old, new in _TABLES:
        op.rename_table(old, new)
    for table, old, new in _COLUMNS:
        op.alter_column(table, old, new_column_name=new)
    for old, new in _STATES:
        _rename_state(old, new)


def downgrade() -> None:
    for new, old in _STATES:
        _rename_state(old, new)
    for table, new, old in _COLUMNS:
        op.alter_column(table, old, new_column_name=new)
    for new, old in _TABLES:
        op.rename_table(old, new)


def _rename_state(old: str, new: str) -> None:
    statement = sa.text("UPDATE bindings SET state = :new WHERE state = :old")
    op.execute(statement.bindparams(old=old, new=new))
