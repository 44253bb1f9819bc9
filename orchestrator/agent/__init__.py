"""The host's side of the in-box agent: wire form and client."""
