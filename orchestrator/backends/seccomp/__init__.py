"""The system call filter of boxes (C3): generated from the engines' current default by rules, pinned, and checked at every start."""

from orchestrator.backends.seccomp.pinned import profile, with_routes

__all__ = ["profile", "with_routes"]
