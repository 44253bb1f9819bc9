package main

import (
	"bytes"
	"fmt"
	"os"
	"runtime"
	"slices"
	"sync"
	"syscall"
	"time"
)

const (
	// sweepLimit is how long one command's tree is chased before all commands of its uid die with it: on runc a sweep of 300
	// processes takes tens of milliseconds, and only runners that fork faster than /proc is read need longer.
	sweepLimit = time.Second
	// enoughQuiet is what looks that found nobody must come to, one after another. A look during which nothing vanished counts whole; one during
	// which something did proves little, since a process that forks and exits without end slips between the entries of many.
	enoughQuiet, wholeQuiet, littleQuiet = 60, 20, 1
	// hastyRounds are tried without stopping what is to be killed.
	hastyRounds = 3
	// killAllLimit bounds the wait for killed processes to be gone (big memory takes a while to free).
	killAllLimit = 5 * time.Second
	// strangerUID is the real and saved uid of the killing thread: nobody's, so that none may signal it.
	strangerUID = 0xFFFFFFFD
	// tagBase starts the range of group ids that mark commands; far above ids that own files.
	tagBase  = 3_000_000_000
	tagRange = 1_000_000_000
	// markName is the environment variable that marks commands where the agent may grant no groups (one_uid). Strippable.
	markName = "TILTYARD_TAG"
)

// killer ends processes. One thread is kept for acting as a command's uid.
type killer struct {
	proc   *procTable
	config *Config
	tags   bool // commands carry a supplementary group of their own
	uids   chan killOrder

	untagged sync.Mutex // held by a sweep where there are no tags
}

type killOrder struct {
	uid  int
	done chan error
}

// tree names one command: the group it carries, its first process while that lives, the mark in its environment.
type tree struct {
	tag      uint32
	root     func() int // 0 once it was reaped
	uid      int
	spared   map[int]bool // processes that, with all that descends from them, are not meant, the first process apart
	keepRoot bool         // the first process itself is not meant, what it started is
}

func newKiller(config *Config) (*killer, error) {
	proc, err := openProc()
	if err != nil {
		return nil, err
	}
	k := &killer{proc: proc, config: config, uids: make(chan killOrder)}
	k.tags = !config.OneUID && tagsWork()
	go k.serve()
	return k, nil
}

// tagsWork tries a tag on a thread that is then thrown away; a user namespace may map no such group. The process's first thread cannot be thrown
// away: it gives the tag back, or the agent itself would be a member of some command's tree.
func tagsWork() bool {
	worked := make(chan bool)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread dies with the goroutine
		taken := setGroups([]uint32{tagBase}) == 0 && setGroups([]uint32{tagBase + tagRange - 1}) == 0
		worked <- setGroups(nil) == 0 && taken
	}()
	return <-worked
}

// members is the command's tree: tagged or marked processes, `known` ones, and every living descendant of those.
func members(all []process, belongs func(process) bool) []process {
	in := map[int]bool{}
	for _, p := range all {
		if belongs(p) {
			in[p.pid] = true
		}
	}
	for grew := true; grew; {
		grew = false
		for _, p := range all {
			if !in[p.pid] && in[p.parent] {
				in[p.pid], grew = true, true
			}
		}
	}
	return slices.DeleteFunc(slices.Clone(all), func(p process) bool { return p.zombie || !in[p.pid] })
}

// sweep ends the tree and nothing else: stop what is found until nothing new is, then kill. False: it was not done in time.
// Where the first process is kept, it is first tried without stopping: gVisor sends SIGHUP to a process group with a stopped member
// when another one dies, which would end that process.
func (k *killer) sweep(t tree, limit time.Duration) bool {
	if !k.tags {
		k.untagged.Lock() // one sweep lets go of what another holds
		defer k.untagged.Unlock()
	}
	deadline := time.Now().Add(limit)
	stopped := map[int]bool{}
	var held *still
	defer func() {
		if held != nil {
			k.release(held)
		}
	}()
	pause, quiet := 100*time.Microsecond, 0
	for round := 0; time.Now().Before(deadline); round++ {
		all, vanished := k.proc.look()
		alive := members(all, func(p process) bool { return stopped[p.pid] && !k.tags || k.belongs(p, t) })
		alive = t.meant(all, alive)
		if len(alive) == 0 {
			if !k.tags && !t.keepRoot && held == nil && os.Getpid() == 1 {
				held = k.hold()
				continue
			}
			if quiet += worth(vanished); quiet >= enoughQuiet {
				return true
			}
			continue
		}
		quiet = 0
		fresh := false
		for _, p := range alive {
			if stop := !t.keepRoot || round >= hastyRounds; stop && !stopped[p.pid] {
				stopped[p.pid], fresh = true, true
				kill1(p.pid, syscall.SIGSTOP)
			}
		}
		if fresh {
			continue
		}
		for _, p := range alive {
			kill1(p.pid, syscall.SIGKILL)
		}
		time.Sleep(pause)
		pause = min(2*pause, 5*time.Millisecond)
	}
	return false
}

// worth of a look that found nobody.
func worth(vanished bool) int {
	if vanished {
		return littleQuiet
	}
	return wholeQuiet
}

// still stops whatever runs as our own uid, for as long as a sweep that can tell a tree only by its environment takes: a runner is gone before that was
// read, but nobody outruns kill(-1). What was stopped before stays so in the end. Only in a pid namespace of our own.
type still struct {
	before map[int]bool
}

func (k *killer) hold() *still {
	s := &still{before: map[int]bool{}}
	for _, p := range k.proc.scan() {
		s.before[p.pid] = p.stopped
	}
	_ = syscall.Kill(-1, syscall.SIGSTOP)
	return s
}

// release lets all go on: one that does not show as stopped yet may have the signal still before it.
func (k *killer) release(s *still) {
	for _, p := range k.proc.scan() {
		if !s.before[p.pid] && !p.zombie {
			kill1(p.pid, syscall.SIGCONT)
		}
	}
}

// meant leaves out of the tree what is to live on.
func (t tree) meant(all, alive []process) []process {
	if t.spared == nil {
		return alive
	}
	root, kept := t.root(), map[int]bool{}
	for _, p := range members(all, func(p process) bool { return t.spared[p.pid] && p.pid != root }) {
		kept[p.pid] = true
	}
	return slices.DeleteFunc(alive, func(p process) bool { return kept[p.pid] || t.keepRoot && p.pid == root })
}

func (k *killer) belongs(p process, t tree) bool {
	if p.pid == t.root() {
		return true
	}
	if k.tags {
		return slices.Contains(p.groups, t.tag)
	}
	return p.uid == t.uid && bytes.Contains(k.proc.environ(p.pid), fmt.Appendf(nil, "%s=%d\x00", markName, t.tag))
}

// killUID ends every process of that uid in the box and returns when none is left.
func (k *killer) killUID(uid int) error {
	order := killOrder{uid: uid, done: make(chan error, 1)}
	k.uids <- order
	return <-order.done
}

func (k *killer) serve() {
	runtime.LockOSThread()
	for order := range k.uids {
		order.done <- k.killLoop(order.uid)
	}
}

func (k *killer) killLoop(uid int) error {
	deadline := time.Now().Add(killAllLimit)
	for {
		if err := k.killOnce(uid); err != nil && err != syscall.ESRCH && err != syscall.EPERM {
			return err
		}
		if !slices.ContainsFunc(k.proc.scan(), func(p process) bool { return p.uid == uid && !p.zombie }) {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("processes of uid %d outlive SIGKILL", uid)
		}
		time.Sleep(time.Millisecond)
	}
}

// killOnce sends SIGKILL to all that this uid may signal: one call that forks cannot outrun.
func (k *killer) killOnce(uid int) error {
	if uid == syscall.Getuid() { // one_uid, or trusted commands
		if os.Getpid() != 1 {
			return k.killListed(uid) // outside a pid namespace of our own kill(-1) would reach beyond the box
		}
		return syscall.Kill(-1, syscall.SIGKILL)
	}
	if err := becomeKiller(uid); err != nil {
		return err
	}
	err := syscall.Kill(-1, syscall.SIGKILL)
	if back := becomeAgent(); back != nil {
		panic(back) // a thread in a foreign identity must not go on
	}
	return err
}

// killListed ends our own descendants only: each is a child of ours in the end, since we are their subreaper.
func (k *killer) killListed(uid int) error {
	self := os.Getpid()
	for _, p := range members(k.proc.scan(), func(p process) bool { return p.parent == self }) {
		if p.uid == uid {
			kill1(p.pid, syscall.SIGKILL)
		}
	}
	return nil
}

// becomeKiller leaves the thread without effective capabilities and with only the effective uid in common with the commands.
func becomeKiller(uid int) error {
	if err := prctl(prSetKeepCaps, 1); err != nil {
		return err
	}
	stranger := uintptr(strangerUID)
	if raw3(syscall.SYS_SETRESUID, stranger, uintptr(uid), stranger) == 0 {
		return nil
	}
	return asError(raw3(syscall.SYS_SETRESUID, uintptr(uid), uintptr(uid), uintptr(uid))) // a user namespace without that uid
}

func becomeAgent() error {
	sets, err := getCaps()
	if err != nil {
		return err
	}
	sets[0].effective = sets[0].permitted
	if err := setCaps(&sets); err != nil {
		return err
	}
	return asError(raw3(syscall.SYS_SETRESUID, 0, 0, 0))
}

// freeze ends every command of the box, of whichever principal, and counts what it found.
func (k *killer) freeze() (killed int, err error) {
	first, last := k.config.UIDBase, k.config.UIDBase+k.config.UIDCount-1
	self := os.Getpid()
	for _, p := range members(k.proc.scan(), func(p process) bool { return p.parent == self }) {
		if p.uid >= first && p.uid <= last || p.uid == syscall.Getuid() {
			killed++
		}
	}
	uids := map[int]bool{k.config.UIDBase: true}
	for _, p := range k.proc.scan() {
		if p.uid >= first && p.uid <= last {
			uids[p.uid] = true
		}
	}
	if k.config.AllowRoot && !k.config.OneUID {
		err = k.killUID(syscall.Getuid())
	}
	for uid := range uids {
		if failure := k.killUID(uid); failure != nil {
			err = failure
		}
	}
	return killed, err
}
