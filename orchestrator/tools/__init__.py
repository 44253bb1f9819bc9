"""What the model may call. One file per tool, one row in registry.py."""
