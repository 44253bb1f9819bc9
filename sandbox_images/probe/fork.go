package main

import (
	"syscall"
	"unsafe"
)

// Children made here have one thread and no Go runtime: until they exit they may do nothing but raw system calls on what was
// prepared before the fork. They cost what a child of a C program costs, which a process started anew would not.

var (
	until  [2]int64 // monotonic seconds and nanoseconds at which a child's work is over
	clock  [2]int64 // of the child that reads it: memory is its own after the fork
	beat   = [1]byte{'x'}
	pulse  = [2]int64{0, 20_000_000}
	region []byte // untouched before the fork: each child that writes owns what it writes
)

const (
	clockMonotonic = 1
	pageBytes      = 4096
	sigBlock       = 0
	sigSetBytes    = 8
	sigIgnore      = 1
	lastSignal     = 64
)

//go:nosplit
func rawFork() (pid uintptr, errno syscall.Errno) {
	pid, _, errno = syscall.RawSyscall6(syscall.SYS_CLONE, uintptr(syscall.SIGCHLD), 0, 0, 0, 0, 0)
	return pid, errno
}

//go:nosplit
func rawExit(code uintptr) {
	for {
		syscall.RawSyscall(syscall.SYS_EXIT_GROUP, code, 0, 0)
	}
}

//go:nosplit
func rawOver() bool {
	syscall.RawSyscall(syscall.SYS_CLOCK_GETTIME, clockMonotonic, uintptr(unsafe.Pointer(&clock)), 0)
	return clock[0] > until[0] || (clock[0] == until[0] && clock[1] >= until[1])
}

//go:nosplit
func rawPulse() {
	syscall.RawSyscall(syscall.SYS_NANOSLEEP, uintptr(unsafe.Pointer(&pulse)), 0, 0)
}

// rawSleep waits for `until` or a signal that kills.
//
//go:nosplit
func rawSleep() {
	for !rawOver() {
		rawPulse()
	}
	rawExit(0)
}

// forkCall makes one system call in a child of its own, whose exit status is the error's number.
//
//go:nosplit
//go:noinline
func forkCall(call *[7]uintptr) (uintptr, syscall.Errno) {
	pid, errno := rawFork()
	if errno != 0 || pid != 0 {
		return pid, errno
	}
	_, _, errno = syscall.RawSyscall6(call[0], call[1], call[2], call[3], call[4], call[5], call[6])
	rawExit(uintptr(errno))
	return 0, 0
}

//go:nosplit
//go:noinline
func forkSleeper() (uintptr, syscall.Errno) {
	pid, errno := rawFork()
	if errno == 0 && pid == 0 {
		rawSleep()
	}
	return pid, errno
}

//go:nosplit
//go:noinline
func forkSpinner() (uintptr, syscall.Errno) {
	pid, errno := rawFork()
	if errno == 0 && pid == 0 {
		for !rawOver() {
		}
		rawExit(0)
	}
	return pid, errno
}

// forkHog makes a child that writes to every page of `region` and keeps it.
//
//go:nosplit
//go:noinline
func forkHog() (uintptr, syscall.Errno) {
	pid, errno := rawFork()
	if errno != 0 || pid != 0 {
		return pid, errno
	}
	for offset := 0; offset < len(region); offset += pageBytes {
		region[offset] = 1
	}
	rawSleep()
	return 0, 0
}

// forkBomb never returns: every process of it forks for as long as there is time.
//
//go:nosplit
//go:noinline
func forkBomb() {
	for !rawOver() {
		rawFork()
	}
	rawExit(0)
}

// forkDaemon makes a grandchild in a session of its own that writes a beat to `fd` until its time is over. A deaf one ignores and
// blocks every signal that can be; a runner is never the same process for two beats.
//
//go:nosplit
//go:noinline
func forkDaemon(fd uintptr, runs bool) (uintptr, syscall.Errno) {
	pid, errno := rawFork()
	if errno != 0 || pid != 0 {
		return pid, errno
	}
	syscall.RawSyscall(syscall.SYS_SETSID, 0, 0, 0)
	if pid, _ = rawFork(); pid != 0 {
		rawExit(0)
	}
	rawDeafen()
	for !rawOver() {
		syscall.RawSyscall(syscall.SYS_WRITE, fd, uintptr(unsafe.Pointer(&beat)), 1)
		if !runs {
			rawPulse()
			continue
		}
		if pid, errno = rawFork(); errno == 0 && pid != 0 {
			rawExit(0)
		}
	}
	rawExit(0)
	return 0, 0
}

var (
	everySignal = [1]uint64{^uint64(0)}
	ignore      = [4]uint64{sigIgnore}
)

//go:nosplit
func rawDeafen() {
	for signal := uintptr(1); signal <= lastSignal; signal++ {
		syscall.RawSyscall6(syscall.SYS_RT_SIGACTION, signal, uintptr(unsafe.Pointer(&ignore)), 0, sigSetBytes, 0, 0)
	}
	syscall.RawSyscall6(syscall.SYS_RT_SIGPROCMASK, sigBlock, uintptr(unsafe.Pointer(&everySignal)), 0, sigSetBytes, 0, 0)
}

// forkQuitter makes a child that ends at once, or (`late`) a grandchild that outlives its parent and ends a little later.
//
//go:nosplit
//go:noinline
func forkQuitter(late bool) (uintptr, syscall.Errno) {
	pid, errno := rawFork()
	if errno != 0 || pid != 0 {
		return pid, errno
	}
	if late {
		if pid, _ = rawFork(); pid == 0 {
			rawPulse()
		}
	}
	rawExit(0)
	return 0, 0
}
