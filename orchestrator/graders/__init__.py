"""What turns evidence into a score. One file per grader, one row in registry.py."""
