package main

import (
	"os"
	"sync"
)

// runner is something that runs as a uid; when everybody's must be killed, all commands die with it.
type runner interface {
	uid() int
	everybodys() bool
}

// commands are the execs and session calls that run now.
type commands struct {
	mu      sync.Mutex
	running map[runner]bool // true: condemned, all commands of its uid are being killed
}

func newCommands() *commands { return &commands{running: map[runner]bool{}} }

func (s *commands) add(c runner) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.running[c] = false
}

func (s *commands) remove(c runner) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.running, c)
}

// condemn marks every running command that ends because this one could not be ended alone: those of its uid, and for a trusted
// one, which the agent's own uid runs, all there are.
func (s *commands) condemn(culprit runner) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.running {
		if culprit.everybodys() || c.uid() == culprit.uid() {
			s.running[c] = true
		}
	}
}

func (s *commands) condemned(c runner) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.running[c]
}

// uids are those of the running commands.
func (s *commands) uids() map[int]bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	found := map[int]bool{}
	for c := range s.running {
		found[c.uid()] = true
	}
	return found
}

// endStrays follows the end of a trusted command, which may have started processes as any uid of the block and stripped
// their tags: whatever uid no other command uses is emptied.
func (a *agent) endStrays() {
	used := a.commands.uids()
	first, last := a.config.UIDBase, a.config.UIDBase+a.config.UIDCount-1
	strays := map[int]bool{}
	for _, p := range a.killer.proc.scan() {
		if p.uid >= first && p.uid <= last && p.uid != os.Getuid() && !used[p.uid] {
			strays[p.uid] = true
		}
	}
	for uid := range strays {
		if err := a.killer.killUID(uid); err != nil {
			logf("strays: %v", err)
		}
	}
}
