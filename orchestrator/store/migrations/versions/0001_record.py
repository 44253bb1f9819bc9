"""The record: rollouts, calls, evidence, rewards, taints, findings."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

ROW_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    _rollouts()
    _calls()
    _bodies()
    _by_name()
    pulse = op.create_table(
        "pulse",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("at", sa.Double, nullable=False),
    )
    op.bulk_insert(pulse, [{"id": 1, "at": 0.0}])


def _rollouts() -> None:
    op.create_table(
        "rollouts",
        sa.Column("id", ROW_ID, primary_key=True, autoincrement=True),
        sa.Column("job", sa.Text, nullable=False),
        sa.Column("trace_id", sa.Text, nullable=False),
        sa.Column("task", sa.Text, nullable=False),
        sa.Column("host", sa.Text, nullable=False),
        sa.Column("epoch", sa.BigInteger, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("sandbox", sa.Text),
        sa.Column("boot_id", sa.Text),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("touched_at", sa.Double, nullable=False),
        sa.UniqueConstraint("job", "trace_id", name="uq_rollouts_job_trace_id"),
    )
    op.create_index("ix_rollouts_host_state", "rollouts", ["host", "state"])
    op.create_index("ix_rollouts_job_created_at", "rollouts", ["job", "created_at"])
    op.create_index("ix_rollouts_created_at", "rollouts", ["created_at"])


def _calls() -> None:
    op.create_table(
        "calls",
        sa.Column("rollout_id", ROW_ID, sa.ForeignKey("rollouts.id"), primary_key=True),
        sa.Column("sequence", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("key", sa.Text, nullable=False),
        sa.Column("call_id", sa.Text, nullable=False),
        sa.Column("tool", sa.Text, nullable=False),
        sa.Column("arguments_text", sa.Text, nullable=False),
        sa.Column("reply_text", sa.Text, nullable=False),
        sa.Column("is_error", sa.Boolean, nullable=False),
        sa.Column("started_at", sa.Double, nullable=False),
        sa.Column("finished_at", sa.Double, nullable=False),
        sa.Column("charged", sa.Boolean, nullable=False),
        sa.UniqueConstraint("key", "rollout_id", name="uq_calls_key_rollout_id"),
    )


def _bodies() -> None:
    op.create_table(
        "evidence",
        sa.Column("rollout_id", ROW_ID, sa.ForeignKey("rollouts.id"), primary_key=True, autoincrement=False),
        sa.Column("body", sa.Text, nullable=False),
    )
    op.create_table(
        "rewards",
        sa.Column("rollout_id", ROW_ID, sa.ForeignKey("rollouts.id"), primary_key=True, autoincrement=False),
        sa.Column("outcome", sa.Text, nullable=False),
        sa.Column("score", sa.Double),
        sa.Column("body", sa.Text, nullable=False),
    )


def _by_name() -> None:
    op.create_table(
        "taints",
        sa.Column("job", sa.Text, primary_key=True),
        sa.Column("trace_id", sa.Text, primary_key=True),
        sa.Column("reason", sa.Text, nullable=False),
    )
    op.create_table(
        "findings",
        sa.Column("id", ROW_ID, primary_key=True, autoincrement=True),
        sa.Column("job", sa.Text, nullable=False),
        sa.Column("trace_id", sa.Text, nullable=False),
        sa.Column("code", sa.Text, nullable=False),
        sa.Column("detail", sa.Text, nullable=False),
    )
    op.create_index("ix_findings_job_trace_id", "findings", ["job", "trace_id"])
