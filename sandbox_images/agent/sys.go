package main

import (
	"runtime"
	"syscall"
	"unsafe"
)

// Linux constants that the syscall package lacks; the same on amd64 and arm64.
const (
	oPath             = 0x200000
	atSymlinkNofollow = 0x100
	atRemovedir       = 0x200

	prSetDumpable     = 4
	prSetKeepCaps     = 8
	prCapBSetDrop     = 24
	prSetChildReaper  = 36
	prSetNoNewPrivs   = 38
	prGetNoNewPrivs   = 39
	prCapAmbient      = 47
	prCapAmbientClear = 4

	sysCloseRange     = 436
	closeRangeCloexec = 4

	waitAll       = 0
	waitExited    = 4
	waitNoWait    = 0x1000000
	waitEveryKind = 0x40000000
	fionread      = 0x541B

	fallocKeepSize  = 1
	fallocPunchHole = 2

	unchanged = ^uintptr(0)
)

// again repeats a call that a signal interrupted: the Go runtime signals its own threads to preempt them.
func again(call func() error) error {
	for {
		if err := call(); err != syscall.EINTR {
			return err
		}
	}
}

func openAt(dir int, name string, flags int, mode uint32) (fd int, err error) {
	err = again(func() error {
		fd, err = syscall.Openat(dir, name, flags|syscall.O_CLOEXEC, mode)
		return err
	})
	return fd, err
}

// statAt never follows a symlink in the last component.
func statAt(dir int, name string, stat *syscall.Stat_t) error {
	text, err := syscall.BytePtrFromString(name)
	if err != nil {
		return err
	}
	return again(func() error {
		_, _, errno := syscall.Syscall6(sysFstatat, uintptr(dir), uintptr(unsafe.Pointer(text)),
			uintptr(unsafe.Pointer(stat)), atSymlinkNofollow, 0, 0)
		return asError(errno)
	})
}

func unlinkAt(dir int, name string, flags int) error {
	text, err := syscall.BytePtrFromString(name)
	if err != nil {
		return err
	}
	_, _, errno := syscall.Syscall(sysUnlinkat, uintptr(dir), uintptr(unsafe.Pointer(text)), uintptr(flags))
	return asError(errno)
}

func renameAt(dir int, from, to string) error {
	return again(func() error { return syscall.Renameat(dir, from, dir, to) })
}

// symlinkAt makes a link; an errno comes back.
func symlinkAt(target string, dir int, name string) error {
	text, err := syscall.BytePtrFromString(target)
	if err != nil {
		return syscall.EINVAL
	}
	link, err := syscall.BytePtrFromString(name)
	if err != nil {
		return syscall.EINVAL
	}
	_, _, errno := syscall.Syscall(syscall.SYS_SYMLINKAT, uintptr(unsafe.Pointer(text)), uintptr(dir), uintptr(unsafe.Pointer(link)))
	return asError(errno)
}

// readlinkAt returns the target of the symlink itself, whatever bytes it holds.
func readlinkAt(dir int, name string) (string, error) {
	text, err := syscall.BytePtrFromString(name)
	if err != nil {
		return "", err
	}
	buffer := make([]byte, 4096)
	size, _, errno := syscall.Syscall6(sysReadlinkat, uintptr(dir), uintptr(unsafe.Pointer(text)),
		uintptr(unsafe.Pointer(&buffer[0])), uintptr(len(buffer)), 0, 0)
	if errno != 0 {
		return "", errno
	}
	return string(buffer[:size]), nil
}

func readFull(fd int, buffer []byte, offset int64) (int, error) {
	done := 0
	for done < len(buffer) {
		count, err := syscall.Pread(fd, buffer[done:], offset+int64(done))
		if err == syscall.EINTR {
			continue
		}
		if err != nil || count == 0 {
			return done, err
		}
		done += count
	}
	return done, nil
}

func writeFull(fd int, data []byte) error {
	for len(data) > 0 {
		count, err := syscall.Write(fd, data)
		if err == syscall.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		data = data[count:]
	}
	return nil
}

func prctl(option int, argument uintptr) error {
	_, _, errno := syscall.RawSyscall6(syscall.SYS_PRCTL, uintptr(option), argument, 0, 0, 0, 0)
	return asError(errno)
}

// kill1 sends to one process; already gone is fine.
func kill1(pid int, signal syscall.Signal) { _ = syscall.Kill(pid, signal) }

func asError(errno syscall.Errno) error {
	if errno == 0 {
		return nil
	}
	return errno
}

// capSets is the kernel's version 3 capability record: effective, permitted and inheritable, low and high words.
type capSets [2]struct{ effective, permitted, inheritable uint32 }

type capHeader struct {
	version uint32
	pid     int32
}

const capVersion3 = 0x20080522

func getCaps() (sets capSets, err error) {
	header := capHeader{version: capVersion3}
	_, _, errno := syscall.RawSyscall(syscall.SYS_CAPGET, uintptr(unsafe.Pointer(&header)), uintptr(unsafe.Pointer(&sets[0])), 0)
	return sets, asError(errno)
}

// setCaps acts on the calling thread only.
func setCaps(sets *capSets) error {
	header := capHeader{version: capVersion3}
	_, _, errno := syscall.RawSyscall(syscall.SYS_CAPSET, uintptr(unsafe.Pointer(&header)), uintptr(unsafe.Pointer(&sets[0])), 0)
	runtime.KeepAlive(sets)
	return asError(errno)
}

// setGroups acts on the calling thread only.
func setGroups(groups []uint32) syscall.Errno {
	var first unsafe.Pointer
	if len(groups) > 0 {
		first = unsafe.Pointer(&groups[0])
	}
	_, _, errno := syscall.RawSyscall(syscall.SYS_SETGROUPS, uintptr(len(groups)), uintptr(first), 0)
	return errno
}
