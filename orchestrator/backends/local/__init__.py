"""Boxes without a container engine: bubblewrap over a part of this machine's own root. docs/local.md says what it does not stop."""
