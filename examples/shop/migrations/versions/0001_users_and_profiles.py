"""Users and their profiles."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

revision = "0001"
down_revision = None


def upgrade() -> None:
    # By default MySQL and MariaDB take é, É and e for one letter, also where they look for a username that exists.
    binary = mysql.VARCHAR(200, collation="utf8mb4_bin")
    username = sa.String(200).with_variant(binary, "mysql", "mariadb")
    op.create_table(
        "users",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("username", username, nullable=False),
        sa.Column("email", sa.String(254)),
        sa.PrimaryKeyConstraint("id", name="pk_users"),
        sa.UniqueConstraint("username", name="uq_users_username"),
        sa.UniqueConstraint("email", name="uq_users_email"),
    )
    op.create_table(
        "profiles",
        sa.Column("user_id", sa.Integer, nullable=False),
        sa.Column("full_name", sa.String(200), nullable=False),
        sa.Column("bio", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("user_id", name="pk_profiles"),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name="fk_profiles_user_id_users"),
    )


def downgrade() -> None:
    op.drop_table("profiles")
    op.drop_table("users")
