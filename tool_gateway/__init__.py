"""The HTTP side of tiltyard: trainers' wire formats, authentication and routing to hosts."""
