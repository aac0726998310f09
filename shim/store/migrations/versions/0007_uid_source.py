"""The source of each uid: equal uids of two sources are two people."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

_TABLES = ("bindings", "intents", "name_holds")


def upgrade() -> None:
    for table in _TABLES:
        op.add_column(table, sa.Column("uid_source", sa.Text, nullable=False, server_default=""))


def downgrade() -> None:
    for table in _TABLES:
        op.drop_column(table, "uid_source")
