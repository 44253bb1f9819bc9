module tiltyard/probe

go 1.26
