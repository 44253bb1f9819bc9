"""From a repository to a sealed, shared, copy-on-write workspace."""
