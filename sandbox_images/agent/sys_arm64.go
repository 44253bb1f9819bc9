package main

// System call numbers that the syscall package names differently, or not at all, from one architecture to the next.
const (
	sysFstatat    = 79
	sysReadlinkat = 78
	sysUnlinkat   = 35
	sysRenameat   = 38
	sysFaccessat  = 48
)
