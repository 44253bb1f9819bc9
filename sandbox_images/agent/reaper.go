package main

import (
	"errors"
	"sync"
	"syscall"
	"unsafe"
)

// reaper is the one place that waits for children: commands we started and orphans that were given to us. It looks first
// (WNOWAIT) and reaps under the lock that covers fork and registration, so no pid is free for reuse before it was told apart.
type reaper struct {
	mu       sync.Mutex
	children map[int]chan<- syscall.WaitStatus
	wake     chan struct{}
	closed   bool
}

var errFrozen = errors.New("the box is frozen")

// newReaper starts the loop. While we have no child nothing can become one but what was put into the box from outside; such a
// zombie waits for the next command.
func newReaper() *reaper {
	r := &reaper{children: map[int]chan<- syscall.WaitStatus{}, wake: make(chan struct{}, 1)}
	go r.loop()
	return r
}

// spawn starts a process; its wait status arrives on the channel once.
func (r *reaper) spawn(program string, argv []string, attr *syscall.ProcAttr) (int, <-chan syscall.WaitStatus, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return 0, nil, errFrozen
	}
	pid, err := syscall.ForkExec(program, argv, attr)
	if err != nil {
		return 0, nil, err
	}
	status := make(chan syscall.WaitStatus, 1)
	r.children[pid] = status
	select {
	case r.wake <- struct{}{}:
	default:
	}
	return pid, status, nil
}

// close lets no process start any more: an operation that began before a freeze may come to its start after it.
func (r *reaper) close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed = true
}

func (r *reaper) loop() {
	for {
		pid, err := peekExited()
		if err != nil {
			<-r.wake
			continue
		}
		r.reap(pid)
	}
}

func (r *reaper) reap(pid int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var status syscall.WaitStatus
	got, err := syscall.Wait4(pid, &status, syscall.WNOHANG|waitEveryKind, nil)
	if err != nil || got != pid {
		return // a child that could not exec: ForkExec took it
	}
	if owner, ours := r.children[pid]; ours {
		delete(r.children, pid)
		owner <- status
	}
}

// peekExited blocks until some child is a zombie, and leaves it one. ECHILD: there are no children.
func peekExited() (int, error) {
	var info [128]byte
	err := again(func() error {
		_, _, errno := syscall.Syscall6(syscall.SYS_WAITID, waitAll, 0, uintptr(unsafe.Pointer(&info[0])),
			waitExited|waitNoWait|waitEveryKind, 0, 0)
		return asError(errno)
	})
	if err != nil {
		return 0, err
	}
	return int(*(*int32)(unsafe.Pointer(&info[16]))), nil // siginfo: three ints, padding, then the union with si_pid first
}
