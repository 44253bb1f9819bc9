"""What a network allow-list means, apart from any engine: names, refused addresses, attempts. Pure."""
