"""`tiltyard demo`: a scripted trainer against a real server, over tasks made from two releases of a published package."""
