"""Backends make and unmake boxes; `registry` names them, and each is imported only when asked for."""
