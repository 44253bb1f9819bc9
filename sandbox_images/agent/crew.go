package main

import (
	"errors"
	"fmt"
	"runtime"
	"syscall"
)

// crew is a fixed set of OS threads whose effective uid and gid are those of the box's commands: work on files happens with
// their rights and no capability, while real and saved ids stay the agent's, so that commands may neither signal nor trace them.
// Threads are made once: with the pids limit full no new one could be.
type crew struct {
	jobs chan job
	open bool // nothing to switch: agent and commands share a uid
}

type job struct {
	uid  int
	work func()
	done chan any
}

var errIdentity = errors.New("the identity of the box's commands could not be taken")

func newCrew(threads int, oneUID bool) *crew {
	c := &crew{jobs: make(chan job), open: oneUID}
	for range threads {
		go c.serve()
	}
	return c
}

// serve never unlocks its thread; no other goroutine ever runs on it.
func (c *crew) serve() {
	runtime.LockOSThread()
	current := -1
	for next := range c.jobs {
		var err error
		if !c.open && current != next.uid {
			if current, err = next.uid, assume(next.uid); err != nil {
				current = -1
			}
		}
		if err != nil {
			next.done <- err
			continue
		}
		next.done <- guarded(next.work)
	}
}

// guarded returns what work panicked with, else nil.
func guarded(work func()) (failure any) {
	defer func() { failure = recover() }()
	work()
	return nil
}

// as runs work with the uid's rights and returns when it is done. Panics with errIdentity, or with what work panicked with.
func (c *crew) as(uid int, work func()) {
	done := make(chan any, 1)
	c.jobs <- job{uid: uid, work: work, done: done}
	if failure := <-done; failure != nil {
		panic(failure)
	}
}

// assume switches the effective ids of this thread alone (raw calls: Go's own would switch every thread), then looks.
func assume(uid int) error {
	var groups [1]uint32
	steps := []func() syscall.Errno{
		func() syscall.Errno { return raw3(syscall.SYS_SETRESUID, unchanged, 0, unchanged) },
		func() syscall.Errno { return setGroups(groups[:0]) },
		func() syscall.Errno { return raw3(syscall.SYS_SETRESGID, unchanged, uintptr(uid), unchanged) },
		func() syscall.Errno { return raw3(syscall.SYS_SETRESUID, unchanged, uintptr(uid), unchanged) },
	}
	for _, step := range steps {
		if errno := step(); errno != 0 {
			return fmt.Errorf("%w: %w", errIdentity, errno)
		}
	}
	if euid, _, _ := syscall.RawSyscall(syscall.SYS_GETEUID, 0, 0, 0); int(euid) != uid {
		return errIdentity
	}
	return nil
}

func raw3(call, a, b, c uintptr) syscall.Errno {
	_, _, errno := syscall.RawSyscall(call, a, b, c)
	return errno
}
