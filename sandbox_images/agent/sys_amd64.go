package main

// System call numbers that the syscall package names differently, or not at all, from one architecture to the next.
const (
	sysFstatat    = 262
	sysReadlinkat = 267
	sysUnlinkat   = 263
	sysRenameat   = 264
	sysFaccessat  = 269
)
