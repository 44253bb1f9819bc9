package main

import (
	"encoding/binary"
	"os"
	"syscall"
	"time"
	"unsafe"
)

// One attempt: a system call of a group, with arguments for which a kernel that had no objection would go to work.
type attempt struct {
	group, name string
	call        [7]uintptr
}

const (
	atFdcwd         = ^uintptr(99) // -100
	nothing         = ^uintptr(0)  // -1
	sessionKeyring  = ^uintptr(2)  // -3
	processKeyring  = ^uintptr(1)  // -2
	newUser         = 0x10000000
	ptraceAttach    = 16
	treeClone       = 1
	minorSelf       = 1
	userModeOnly    = 1
	setOffset       = 0x100
	perfSoftware    = 1
	perfUserOnly    = 1<<5 | 1<<6
	sysIoUringSetup = 425
	sysOpenTree     = 428
	sysMoveMount    = 429
	sysFsopen       = 430
	sysFsmount      = 432
	sysFspick       = 433
	sysClone3       = 435
	sysPidfdGetfd   = 438
	sysMountSetattr = 442
)

var (
	rootName  = []byte("/\x00")
	tmpName   = []byte("/tmp\x00")
	tmpfsName = []byte("tmpfs\x00")
	userName  = []byte("user\x00")
	scratch   = make([]byte, 256)
	perfEvent = make([]byte, 128)
	mapAttr   = make([]byte, 128)
	cloneArgs = make([]byte, 64)
	handle    = make([]byte, 64)
	ring      = make([]byte, 120)
	timex     = make([]byte, 256)
	vector    [2]uintptr
	now       [2]int64 // as a timespec
	nowToo    [2]int64 // as a timeval
)

func at(data []byte) uintptr { return uintptr(unsafe.Pointer(unsafe.SliceData(data))) }

func prepare() {
	binary.NativeEndian.PutUint32(perfEvent[0:], perfSoftware)
	binary.NativeEndian.PutUint32(perfEvent[4:], 112)
	binary.NativeEndian.PutUint64(perfEvent[40:], perfUserOnly)
	for number, value := range []uint32{2, 4, 4, 1} { // an array of one element, keys and values of four bytes
		binary.NativeEndian.PutUint32(mapAttr[4*number:], value)
	}
	binary.NativeEndian.PutUint64(cloneArgs[32:], uint64(syscall.SIGCHLD))
	binary.NativeEndian.PutUint32(handle[0:], 8)
	binary.NativeEndian.PutUint32(handle[4:], 1)
	binary.NativeEndian.PutUint32(timex[0:], setOffset)
	wall := time.Now()
	now = [2]int64{wall.Unix(), int64(wall.Nanosecond())}
	nowToo = [2]int64{wall.Unix(), int64(wall.Nanosecond() / 1000)}
	vector = [2]uintptr{at(scratch), 8}
}

func table() []attempt {
	network, _ := os.Open("/proc/self/ns/net")
	setns := nothing
	if network != nil {
		setns = network.Fd()
	}
	wall := uintptr(unsafe.Pointer(&now))
	iovec := uintptr(unsafe.Pointer(&vector))
	made := []attempt{
		{"harmless", "getpid", [7]uintptr{syscall.SYS_GETPID}},
		{"harmless", "sched_yield", [7]uintptr{syscall.SYS_SCHED_YIELD}},
		{"harmless", "clone", [7]uintptr{syscall.SYS_CLONE, uintptr(syscall.SIGCHLD)}},
		{"harmless", "socket-unix", [7]uintptr{syscall.SYS_SOCKET, syscall.AF_UNIX, syscall.SOCK_STREAM}},
		{"harmless", "socket-inet", [7]uintptr{syscall.SYS_SOCKET, syscall.AF_INET, syscall.SOCK_STREAM}},
		{"kernel", "io_uring_setup", [7]uintptr{sysIoUringSetup, 1, at(ring)}},
		{"kernel", "bpf", [7]uintptr{sysBpf, 0, at(mapAttr), 48}},
		{"kernel", "perf_event_open", [7]uintptr{syscall.SYS_PERF_EVENT_OPEN, at(perfEvent), 0, nothing, nothing, 0}},
		{"kernel", "userfaultfd", [7]uintptr{sysUserfaultfd, userModeOnly}},
		{"kernel", "keyctl", [7]uintptr{syscall.SYS_KEYCTL, 0, sessionKeyring, 0}},
		{"kernel", "add_key", [7]uintptr{syscall.SYS_ADD_KEY, at(userName), at(tmpName), at(tmpName), 1, processKeyring}},
		{"kernel", "init_module", [7]uintptr{syscall.SYS_INIT_MODULE, at(scratch), 16, at(scratch)}},
		{"kernel", "finit_module", [7]uintptr{sysFinitModule, nothing, at(scratch), 0}},
		{"kernel", "kexec_load", [7]uintptr{sysKexecLoad, 0, 0, 0, 0}},
		{"kernel", "syslog", [7]uintptr{syscall.SYS_SYSLOG, 3, at(scratch), 16}},
		{"kernel", "acct", [7]uintptr{syscall.SYS_ACCT, 0}},
		{"kernel", "swapon", [7]uintptr{syscall.SYS_SWAPON, at(tmpName), 0}},
		{"kernel", "reboot", [7]uintptr{syscall.SYS_REBOOT, 0, 0, 0, 0}},
		{"mounts", "mount", [7]uintptr{syscall.SYS_MOUNT, at(tmpfsName), at(tmpName), at(tmpfsName), 0, 0}},
		{"mounts", "umount2", [7]uintptr{syscall.SYS_UMOUNT2, at(tmpName), 0}},
		{"mounts", "fsopen", [7]uintptr{sysFsopen, at(tmpfsName), 0}},
		{"mounts", "fsmount", [7]uintptr{sysFsmount, nothing, 0, 0}},
		{"mounts", "fspick", [7]uintptr{sysFspick, atFdcwd, at(rootName), 0}},
		{"mounts", "open_tree", [7]uintptr{sysOpenTree, atFdcwd, at(rootName), treeClone}},
		{"mounts", "move_mount", [7]uintptr{sysMoveMount, atFdcwd, at(rootName), atFdcwd, at(tmpName), 0}},
		{"mounts", "mount_setattr", [7]uintptr{sysMountSetattr, atFdcwd, at(rootName), 0, at(scratch), 32}},
		{"mounts", "pivot_root", [7]uintptr{syscall.SYS_PIVOT_ROOT, at(tmpName), at(tmpName)}},
		{"mounts", "chroot", [7]uintptr{syscall.SYS_CHROOT, at(tmpName)}},
		{"namespaces", "unshare-user", [7]uintptr{syscall.SYS_UNSHARE, newUser}},
		{"namespaces", "unshare-mnt", [7]uintptr{syscall.SYS_UNSHARE, syscall.CLONE_NEWNS}},
		{"namespaces", "unshare-net", [7]uintptr{syscall.SYS_UNSHARE, syscall.CLONE_NEWNET}},
		{"namespaces", "setns", [7]uintptr{sysSetns, setns, 0}},
		{"namespaces", "clone-user", [7]uintptr{syscall.SYS_CLONE, newUser | uintptr(syscall.SIGCHLD)}},
		{"namespaces", "sethostname", [7]uintptr{syscall.SYS_SETHOSTNAME, at(userName), 4}},
		{"clone3", "clone3", [7]uintptr{sysClone3, at(cloneArgs), uintptr(len(cloneArgs))}},
		{"handles", "open_by_handle_at", [7]uintptr{sysOpenByHandleAt, atFdcwd, at(handle), 0}},
		{"handles", "pidfd_getfd", [7]uintptr{sysPidfdGetfd, nothing, 0, 0}},
		{"handles", "ptrace", [7]uintptr{syscall.SYS_PTRACE, ptraceAttach, 1}},
		{"handles", "process_vm_readv", [7]uintptr{sysProcessVMReadv, 1, iovec, 1, iovec, 1, 0}},
		{"handles", "kcmp", [7]uintptr{sysKcmp, 1, 1, 0, 0, 0}},
		{"clock", "clock_settime", [7]uintptr{sysClockSettime, 0, wall}},
		{"clock", "settimeofday", [7]uintptr{syscall.SYS_SETTIMEOFDAY, uintptr(unsafe.Pointer(&nowToo)), 0}},
		{"clock", "adjtimex", [7]uintptr{syscall.SYS_ADJTIMEX, at(timex)}},
		{"families", "alg", [7]uintptr{syscall.SYS_SOCKET, 38, syscall.SOCK_SEQPACKET}},
		{"families", "vsock", [7]uintptr{syscall.SYS_SOCKET, 40, syscall.SOCK_STREAM}},
		{"families", "packet", [7]uintptr{syscall.SYS_SOCKET, syscall.AF_PACKET, syscall.SOCK_RAW}},
		{"families", "raw", [7]uintptr{syscall.SYS_SOCKET, syscall.AF_INET, syscall.SOCK_RAW, syscall.IPPROTO_ICMP}},
	}
	return append(made, ownAttempts()...)
}

// calls says of each: GROUP NAME ok, an error's name, or the signal that ended the caller.
func calls([]string) error {
	prepare()
	for _, each := range table() {
		pid, errno := forkCall(&each.call)
		if errno != 0 {
			return errno
		}
		say(each.group, each.name, ending(int(pid)))
	}
	foreign()
	return nil
}

// ending waits for a child whose exit status is an error's number.
func ending(pid int) string {
	var status syscall.WaitStatus
	for {
		_, err := syscall.Wait4(pid, &status, 0, nil)
		if err == nil {
			break
		}
		if err != syscall.EINTR {
			return "lost"
		}
	}
	if status.Signaled() {
		return "killed"
	}
	return outcome(asError(syscall.Errno(status.ExitStatus())))
}
