"""Open rollouts of every host, for those whose boxes any host may take over."""

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index("ix_rollouts_state", "rollouts", ["state"])
