package main

import (
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"sync"
	"syscall"
	"unsafe"
)

// keptCaps are SETGID (6), SETUID (7) and KILL (5): all that a root agent needs, and all that it keeps.
const keptCaps = 1<<5 | 1<<6 | 1<<7

// harden gives up what the agent does not need, before any command runs, on every thread there is.
func harden() error {
	syscall.Umask(0o022)
	closeOnExec()
	none := syscall.Rlimit{}
	if err := syscall.Setrlimit(syscall.RLIMIT_CORE, &none); err != nil {
		return fmt.Errorf("no core files: %w", err)
	}
	if err := prctl(prSetDumpable, 0); err != nil {
		return fmt.Errorf("undumpable: %w", err)
	}
	if err := prctl(prSetChildReaper, 1); err != nil {
		return fmt.Errorf("subreaper: %w", err)
	}
	if err := dropCaps(); err != nil {
		return fmt.Errorf("drop capabilities: %w", err)
	}
	if _, _, errno := syscall.AllThreadsSyscall6(syscall.SYS_PRCTL, prSetNoNewPrivs, 1, 0, 0, 0, 0); errno != 0 {
		return fmt.Errorf("no_new_privs: %w", errno)
	}
	return nil
}

// closeOnExec keeps descriptors that whoever started us left open from reaching commands. Each is tried: a kernel may lack close_range.
func closeOnExec() {
	if _, _, errno := syscall.RawSyscall(sysCloseRange, 3, uintptr(^uint32(0)), closeRangeCloexec); errno == 0 {
		return
	}
	for fd := 3; fd < 1024; fd++ {
		syscall.CloseOnExec(fd)
	}
}

// dropCaps leaves at most keptCaps, in no set but effective, permitted and (where we may write it) bounding.
func dropCaps() error {
	sets, err := getCaps()
	if err != nil {
		return err
	}
	const setPcap = 1 << 8
	if sets[0].effective&setPcap != 0 {
		for capability := uintptr(0); capability < 64; capability++ {
			if uint64(keptCaps)>>capability&1 == 0 {
				// EINVAL: a capability this kernel does not know.
				_, _, _ = syscall.AllThreadsSyscall6(syscall.SYS_PRCTL, prCapBSetDrop, capability, 0, 0, 0, 0)
			}
		}
	}
	_, _, _ = syscall.AllThreadsSyscall6(syscall.SYS_PRCTL, prCapAmbient, prCapAmbientClear, 0, 0, 0, 0)
	kept := capSets{}
	kept[0].permitted = sets[0].permitted & keptCaps
	kept[0].effective = kept[0].permitted
	header := capHeader{version: capVersion3}
	_, _, errno := syscall.AllThreadsSyscall(syscall.SYS_CAPSET,
		uintptr(unsafe.Pointer(&header)), uintptr(unsafe.Pointer(&kept[0])), 0)
	runtime.KeepAlive(&kept)
	return asError(errno)
}

// catchSignals keeps commands that share our uid (one_uid) from ending the agent: as PID 1 it is deaf to what it has no handler
// for, and the Go runtime has handlers. In split mode SIGTERM from outside is a polite end.
func catchSignals(oneUID bool) {
	caught := make(chan os.Signal, 8)
	for number := syscall.Signal(1); number < 32; number++ {
		if number != syscall.SIGKILL && number != syscall.SIGSTOP && number != syscall.SIGCHLD && number != syscall.SIGURG {
			signal.Notify(caught, number)
		}
	}
	go func() {
		for received := range caught {
			if received == syscall.SIGTERM && !oneUID {
				os.Exit(0)
			}
		}
	}()
}

// reserveThreads makes the runtime create threads now and keep them: with the box's pids limit full it could make none later,
// and would end the whole process.
func reserveThreads(count int) error {
	if count == 0 {
		return nil
	}
	var pipe [2]int
	if err := syscall.Pipe2(pipe[:], syscall.O_CLOEXEC); err != nil {
		return err
	}
	var blocked, done sync.WaitGroup
	blocked.Add(count)
	done.Add(count)
	for range count {
		go func() {
			defer done.Done()
			runtime.LockOSThread() // a thread each: an unlocked goroutine could wait for a free one
			defer runtime.UnlockOSThread()
			blocked.Done()
			var one [1]byte
			_ = again(func() error { _, err := syscall.Read(pipe[0], one[:]); return err })
		}()
	}
	blocked.Wait()
	_ = syscall.Close(pipe[1])
	done.Wait()
	return syscall.Close(pipe[0])
}
