package main

import "syscall"

const (
	sysKexecLoad      = 246
	sysClockSettime   = syscall.SYS_CLOCK_SETTIME
	sysOpenByHandleAt = 304
	sysSetns          = 308
	sysProcessVMReadv = 310
	sysKcmp           = 312
	sysFinitModule    = 313
	sysRenameat2      = 316
	sysBpf            = 321
	sysUserfaultfd    = 323
	sysMqOpen         = 240
	sysShmget         = syscall.SYS_SHMGET

	x32Bit         = 0x40000000
	int80Getpid    = 20
	int80Socket    = 102 // socketcall
	socketOfTheOld = 1
)

func ownAttempts() []attempt {
	return []attempt{
		{"kernel", "iopl", [7]uintptr{syscall.SYS_IOPL, 3}},
		{"kernel", "ioperm", [7]uintptr{syscall.SYS_IOPERM, 0x80, 1, 1}},
		{"foreign", "x32-getpid", [7]uintptr{x32Bit | syscall.SYS_GETPID}},
	}
}

// int80 makes a system call of 32-bit x86 from a 64-bit process. In calls_amd64.s.
//
//go:noescape
func int80(number, first, second uint32) int32

//go:nosplit
//go:noinline
func forkInt80(number, first uint32) (uintptr, syscall.Errno) {
	pid, errno := rawFork()
	if errno != 0 || pid != 0 {
		return pid, errno
	}
	result := int80(number, first, 0)
	if result > 0 {
		result = 0
	}
	rawExit(uintptr(-result))
	return 0, 0
}

func foreign() {
	for _, each := range []struct {
		name          string
		number, first uint32
	}{{"int80-getpid", int80Getpid, 0}, {"int80-socketcall", int80Socket, socketOfTheOld}} {
		pid, errno := forkInt80(each.number, each.first)
		if errno != 0 {
			say("foreign", each.name, outcome(errno))
			continue
		}
		say("foreign", each.name, ending(int(pid)))
	}
}
