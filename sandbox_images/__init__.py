"""Sources of what runs inside a box: the agent and the base images. Shipped as package data."""
