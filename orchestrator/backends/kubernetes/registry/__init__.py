"""An OCI registry, as far as task images need it: images are read and made over HTTP, without an engine."""
