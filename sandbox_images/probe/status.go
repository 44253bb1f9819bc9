package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unsafe"
)

var statusFields = []string{"Uid", "Gid", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp"}

// status prints WHO and the fields above, of this process, each of its threads, a forked child and a started one.
func status([]string) error {
	if err := sayStatus("self", "/proc/self/status"); err != nil {
		return err
	}
	threads, _ := filepath.Glob("/proc/self/task/*/status")
	for _, path := range threads {
		if err := sayStatus("thread", path); err != nil && !os.IsNotExist(err) {
			return err
		}
	}
	over(20 * time.Second)
	pid, errno := forkSleeper()
	if errno != 0 {
		return errno
	}
	defer reap([]int{int(pid)})
	if err := sayStatus("forked", fmt.Sprintf("/proc/%d/status", pid)); err != nil {
		return err
	}
	out.Flush()
	child := exec.Command("/proc/self/exe", "status-of", "started")
	child.Stdout, child.Stderr = os.Stdout, os.Stderr
	return child.Run()
}

func statusOfSelf(arguments []string) error { return sayStatus(arguments[0], "/proc/self/status") }

func sayStatus(who, path string) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	found := map[string]string{}
	for _, line := range strings.Split(string(data), "\n") {
		name, value, _ := strings.Cut(line, ":")
		if words := strings.Fields(value); len(words) > 0 {
			found[name] = words[0]
		}
	}
	fields := []any{who}
	for _, name := range statusFields {
		fields = append(fields, name+"="+found[name])
	}
	say(fields...)
	return nil
}

// processes prints PID, PARENT, STATE and the command line of all that can be seen.
func processes([]string) error {
	folders, _ := filepath.Glob("/proc/[0-9]*")
	for _, folder := range folders {
		stat, err := os.ReadFile(folder + "/stat")
		if err != nil {
			continue
		}
		words := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
		line, _ := os.ReadFile(folder + "/cmdline")
		say(filepath.Base(folder), words[1], words[0], strings.ReplaceAll(strings.TrimRight(string(line), "\x00"), "\x00", " "))
	}
	return nil
}

// namespaces prints NAME and inode.
func namespaces([]string) error {
	for _, name := range []string{"cgroup", "ipc", "mnt", "net", "pid", "user", "uts"} {
		target, err := os.Readlink("/proc/self/ns/" + name)
		if err != nil {
			target = outcome(err)
		}
		say(name, target)
	}
	return nil
}

// environ prints every environment and command line that can be read, NUL as blank.
func environ([]string) error {
	for _, pattern := range []string{"/proc/[0-9]*/environ", "/proc/[0-9]*/cmdline"} {
		paths, _ := filepath.Glob(pattern)
		for _, path := range paths {
			if data, err := os.ReadFile(path); err == nil && len(data) > 0 {
				say(path, strconv.Quote(string(data)))
			}
		}
	}
	return nil
}

var rlimitNames = []string{"cpu", "fsize", "data", "stack", "core", "rss", "nproc", "nofile", "memlock", "as", "locks",
	"sigpending", "msgqueue", "nice", "rtprio", "rttime"}

// rlimits prints NAME, soft and hard, -1 for none. Go has raised the soft limit of open files to the hard one.
func rlimits([]string) error {
	for resource, name := range rlimitNames {
		var limit [2]uint64
		_, _, errno := syscall.RawSyscall6(syscall.SYS_PRLIMIT64, 0, uintptr(resource), 0, uintptr(unsafe.Pointer(&limit)), 0, 0)
		if errno != 0 {
			say(name, outcome(errno))
			continue
		}
		say(name, int64(limit[0]), int64(limit[1]))
	}
	return nil
}

const tiocsti = 0x5412

// terminal tries to put a letter into every terminal that it can get hold of: NAME ok or an error's name.
func terminal([]string) error {
	letter := byte('x')
	push := func(name string, fd uintptr) {
		_, _, errno := syscall.Syscall(syscall.SYS_IOCTL, fd, tiocsti, uintptr(unsafe.Pointer(&letter)))
		say(name, outcome(asError(errno)))
	}
	for fd := range uintptr(3) {
		push(fmt.Sprintf("fd%d", fd), fd)
	}
	slaves, _ := filepath.Glob("/dev/pts/[0-9]*")
	for _, path := range append([]string{"/dev/tty", "/dev/console"}, slaves...) {
		file, err := os.OpenFile(path, os.O_RDWR|syscall.O_NOCTTY, 0)
		if err != nil {
			say(path, outcome(err))
			continue
		}
		push(path, file.Fd())
		file.Close()
	}
	return nil
}

// over sets the moment at which children's work is done.
func over(span time.Duration) {
	var moment [2]int64
	syscall.RawSyscall(syscall.SYS_CLOCK_GETTIME, clockMonotonic, uintptr(unsafe.Pointer(&moment)), 0)
	total := moment[1] + int64(span)
	until = [2]int64{moment[0] + total/1e9, total % 1e9}
	runtime.KeepAlive(moment)
}

// reap kills children and waits for them.
func reap(pids []int) {
	for _, pid := range pids {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	for _, pid := range pids {
		for {
			if _, err := syscall.Wait4(pid, nil, 0, nil); err != syscall.EINTR {
				break
			}
		}
	}
}
