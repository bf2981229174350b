"""The tables that the errors are about, with every way to give, or not to give, a constraint its name."""

import sqlalchemy as sa

METADATA = sa.MetaData(naming_convention={"uq": "uq_%(table_name)s_%(column_0_N_name)s", "ix": "ix_%(column_0_label)s"})
UNCONVENTIONAL = sa.MetaData()

users = sa.Table(
    "users",
    METADATA,
    sa.Column("id", sa.Integer, autoincrement=False),
    sa.Column("username", sa.String(200), nullable=False, server_default="nobody"),
    sa.Column("email", sa.String(200), index=True, unique=True),
    sa.Column("tenant", sa.Integer),
    sa.Column("badge", sa.Integer),
    sa.Column("age", sa.Integer),
    sa.Column("note", sa.String(5)),
    sa.PrimaryKeyConstraint("id", name="pk_users"),
    sa.UniqueConstraint("tenant", "badge"),
    sa.UniqueConstraint("username", name="one_of_a_name"),
    sa.CheckConstraint("age > 0", name="ck_users_age"),
)

orders = sa.Table(
    "orders",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("user_id", sa.Integer, sa.ForeignKey("users.id", name="fk_orders_user_id")),
    sa.Column("guard_id", sa.Integer, sa.ForeignKey("users.id", name="fk_orders_guard_id", ondelete="RESTRICT")),
)

unnamed = sa.Table(
    "unnamed",
    UNCONVENTIONAL,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("code", sa.Integer, unique=True),
    sa.Column("owner", sa.Integer, sa.ForeignKey("unnamed.id")),
)
