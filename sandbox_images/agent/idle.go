package main

import (
	"bytes"
	"os"
	"runtime"
	"runtime/debug"
	"strconv"
	"sync"
	"syscall"
	"time"
)

// idleAfter is how long a box does nothing before its agent makes itself small. An RL step holds hundreds of boxes that wait for a model;
// the first command after it takes about a millisecond longer.
const idleAfter = 2 * time.Second

// settledAfter is when it does so again: connections that a burst needed are closed by then.
const settledAfter = idleTimeout + 10*time.Second

// trimmer gives memory back while nothing runs.
type trimmer struct {
	mu      sync.Mutex
	busy    int
	settled bool
	timer   *time.Timer
	code    []mapping
}

// mapping is a part of the program's own file that is mapped read-only.
type mapping struct{ start, size uintptr }

func newTrimmer() *trimmer {
	t := &trimmer{code: readOnlyCode()}
	t.timer = time.AfterFunc(idleAfter, t.trim)
	return t
}

func (t *trimmer) begin() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.busy++
	t.settled = false
	t.timer.Stop()
}

func (t *trimmer) end() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.busy--; t.busy == 0 {
		t.timer.Reset(idleAfter)
	}
}

// trim frees the heap, and lets go of the program's own pages: they stay in the page cache, which all boxes share, and come back
// by soft faults, a few dozen for the next command.
func (t *trimmer) trim() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.busy > 0 {
		return
	}
	if !t.settled {
		t.settled = true
		t.timer.Reset(settledAfter)
	}
	runtime.GC() // what pools hold takes two collections to go
	debug.FreeOSMemory()
	for _, m := range t.code {
		_, _, _ = syscall.Syscall(syscall.SYS_MADVISE, m.start, m.size, syscall.MADV_DONTNEED)
	}
}

// readOnlyCode finds the mappings of our own program that nobody can have written to: dropping those loses nothing.
func readOnlyCode() (found []mapping) {
	program, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return nil
	}
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		return nil
	}
	for _, line := range bytes.Split(maps, []byte("\n")) {
		fields := bytes.Fields(line)
		if len(fields) != 6 || string(fields[5]) != program || len(fields[1]) != 4 || fields[1][1] != '-' || fields[1][3] != 'p' {
			continue
		}
		low, high, _ := bytes.Cut(fields[0], []byte("-"))
		start, failed := strconv.ParseUint(string(low), 16, 64)
		end, failedToo := strconv.ParseUint(string(high), 16, 64)
		if failed == nil && failedToo == nil && end > start {
			found = append(found, mapping{uintptr(start), uintptr(end - start)})
		}
	}
	return found
}
