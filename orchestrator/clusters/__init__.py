"""Which host owns a rollout."""
