module tiltyard/agent

go 1.26
