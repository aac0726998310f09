"""Token rules, and a version of each binding.

A password that an earlier version of the shim wrote at a lock could be replaced without knowing it: every
account that is locked gets another one.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "bindings", sa.Column("version", sa.Integer(), nullable=False, server_default="0")
    )
    rules = op.create_table(
        "token_rules",
        sa.Column("navidrome_id", sa.Text(), nullable=False),
        sa.Column("locked", sa.Boolean(), nullable=False),
        sa.Column("void_before", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("navidrome_id"),
    )
    bindings = sa.table(
        "bindings",
        sa.column("navidrome_id", sa.Text()),
        sa.column("state", sa.Text()),
        sa.column("open_door", sa.Boolean()),
    )
    locked = bindings.c.state.in_(["refused", "released"]) | bindings.c.open_door
    op.execute(bindings.update().where(locked).values(open_door=True))
    rows = sa.select(bindings.c.navidrome_id, sa.true(), sa.literal(0.0, sa.Double())).where(locked)
    op.execute(rules.insert().from_select(["navidrome_id", "locked", "void_before"], rows))
    intents = sa.table("intents", sa.column("kind", sa.Text()))
    op.execute(intents.delete().where(intents.c.kind == "lock"))


def downgrade() -> None:
    op.drop_table("token_rules")
    op.drop_column("bindings", "version")
