package main

import (
	"crypto/rand"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	// maxSessions bounds the shells that one box keeps: each costs a process, and some descriptors and memory here.
	maxSessions = 8
	// interruptLimit is how long an interrupted shell has to come back to its loop, and a fresh one to take its state over.
	interruptLimit = 2 * time.Second
	// interruptSweep is how long each round chases what the script started: under gVisor one look at /proc takes milliseconds.
	interruptSweep = 400 * time.Millisecond
	// interruptPause is after what time a shell is interrupted again: one that was just starting a program may have passed over it.
	interruptPause = 100 * time.Millisecond
)

// SessionResult mirrors docs/agent-protocol.md.
type SessionResult struct {
	Type      string  `json:"type"`
	ExitCode  *int    `json:"exit_code"`
	Signal    *string `json:"signal"`
	TimedOut  bool    `json:"timed_out"`
	Cancelled bool    `json:"cancelled"`
	OOMKilled bool    `json:"oom_killed"`
	KilledAll bool    `json:"killed_all"`
	Started   string  `json:"started"`
	Session   string  `json:"session"`
	Output    Output  `json:"output"`
}

// What became of the session, and whether this call began in a fresh shell.
const (
	sessionKept      = "kept"
	sessionRestarted = "restarted" // a fresh shell with the state at the last call's end
	sessionLost      = "lost"      // no shell: the next call begins in a fresh one
	sessionEnded     = "ended"     // by its own doing; as above

	startedNot   = "no"
	startedFirst = "first"
	startedAgain = "again" // an earlier shell of that name is gone
)

// sessions are the box's named shells.
type sessions struct {
	mu    sync.Mutex
	named map[string]*session
	live  int
}

// session is one name. `turn` lets one call at a time touch the rest.
type session struct {
	name  string
	turn  chan struct{}
	shell *shell
	begun bool
}

func newSessions() *sessions { return &sessions{named: map[string]*session{}} }

func (s *sessions) get(name string) *session {
	s.mu.Lock()
	defer s.mu.Unlock()
	found := s.named[name]
	if found == nil {
		found = &session{name: name, turn: make(chan struct{}, 1)}
		s.named[name] = found
	}
	return found
}

// take counts one more shell; false: there are as many as may be, and all live.
func (s *sessions) take(unheard *atomic.Int32) bool {
	if s.count() {
		return true
	}
	s.bury(unheard)
	return s.count()
}

func (s *sessions) count() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.live >= maxSessions {
		return false
	}
	s.live++
	return true
}

// bury lets go of the shells that ended between calls. A session that is in use sees to its own.
func (s *sessions) bury(unheard *atomic.Int32) {
	s.mu.Lock()
	all := slices.Collect(maps.Values(s.named))
	s.mu.Unlock()
	for _, each := range all {
		select {
		case each.turn <- struct{}{}:
			if each.shell != nil && each.shell.over() {
				s.drop(each, unheard)
			}
			<-each.turn
		default:
		}
	}
}

// drop lets go of a session's shell, which is gone.
func (s *sessions) drop(each *session, unheard *atomic.Int32) {
	each.shell.close(unheard)
	each.shell = nil
	s.give()
}

func (s *sessions) give() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.live--
}

// sessionCall is one script in its session.
type sessionCall struct {
	agent   *agent
	op      *sessionOp
	session *session
	out     *capture
	result  *SessionResult
	hearing *hearing
	before  map[int]bool // what ran when the call began is not the call's
	saved   *shellState  // where the shell was then; nil: not known
	ooms    int64
}

func (c *sessionCall) uid() int         { return c.agent.config.UID(0) }
func (c *sessionCall) everybodys() bool { return false }

// runSession waits for the session's turn and runs the script in it.
func (a *agent) runSession(op *sessionOp, out *capture, cancel <-chan struct{}) any {
	defer out.close()
	s := a.sessions.get(op.Name)
	select {
	case s.turn <- struct{}{}:
		defer func() { <-s.turn }()
	case <-cancel:
		return &SessionResult{Type: "session", Cancelled: true, Started: startedNot, Session: sessionKept, Output: out.output()}
	}
	c := &sessionCall{agent: a, op: op, session: s, out: out, ooms: a.cgroup.oomKills()}
	c.result = &SessionResult{Type: "session", Started: startedNot, Session: sessionKept}
	if refused := c.open(); refused != nil {
		return refused
	}
	a.commands.add(c)
	defer a.commands.remove(c)
	if refused := c.run(cancel); refused != nil {
		return refused
	}
	return c.result
}

// open leaves the session with a living shell, or says why there is none.
func (c *sessionCall) open() *Failure {
	s := c.session
	if strings.ContainsRune(c.op.Script, 0) {
		return refuse(codeCannotStart, "the script holds a NUL byte")
	}
	if s.shell != nil && s.shell.over() {
		c.drop()
	}
	if s.shell != nil {
		if s.shell.tty != c.op.TTY {
			return refuse(codeExists, fmt.Sprintf("session %s runs %s; call it that way, take another name, or end it with exit", s.name, terminalWord(s.shell.tty)))
		}
		return nil
	}
	if !c.agent.sessions.take(&c.agent.unheard) {
		return refuse(codeCannotStart, fmt.Sprintf("%d sessions run, as many as may; use one of them, or end one with exit", maxSessions))
	}
	started, refused := c.agent.startShell(c.op)
	if refused != nil {
		c.agent.sessions.give()
		return refused
	}
	c.result.Started = startedFirst
	if s.begun {
		c.result.Started = startedAgain
	}
	s.shell, s.begun = started, true
	return nil
}

func terminalWord(tty bool) string {
	if tty {
		return "with a terminal"
	}
	return "without a terminal"
}

// drop lets go of a shell that is gone.
func (c *sessionCall) drop() {
	c.agent.sessions.drop(c.session, &c.agent.unheard)
}

// run hands the script over and fills the result.
func (c *sessionCall) run(cancel <-chan struct{}) *Failure {
	sh := c.session.shell
	c.before = c.agent.killer.proc.pids()
	script, err := c.agent.putScript(c.op.Name, []byte(c.op.Script))
	if err != nil {
		return refusal("the session's script", err)
	}
	defer script.remove()
	expired := make(chan struct{})
	timer := time.AfterFunc(time.Duration(c.op.Timeout*float64(time.Second)), func() { close(expired) })
	defer timer.Stop()
	sh.listen(c.out)
	c.saved = sh.settle(expired, cancel)
	c.hearing = sh.order(rand.Text(), script.path)
	select {
	case code := <-c.hearing.status:
		c.result.ExitCode = &code
	case <-sh.gone:
		c.gone()
		return nil
	case <-expired:
		c.result.TimedOut = true
	case <-cancel:
		c.result.Cancelled = true
	}
	if c.result.ExitCode == nil {
		c.end()
	} else {
		c.finish()
	}
	return nil
}

// finish takes the output of a script that came to its end.
func (c *sessionCall) finish() {
	c.session.shell.mute()
	c.describe()
}

// gone is the end of the shell by its own doing, or by somebody's signal.
func (c *sessionCall) gone() {
	c.result.Session = sessionEnded
	ended := c.session.shell.ended
	if ended.Exited() {
		code := ended.ExitStatus()
		c.result.ExitCode = &code
	} else {
		name := signalName(ended.Signal())
		c.result.Signal = &name
	}
	c.drop()
	c.describe()
}

func (c *sessionCall) describe() {
	r := c.result
	r.KilledAll = r.KilledAll || c.agent.commands.condemned(c)
	killed := r.Signal != nil && *r.Signal == "SIGKILL" || r.ExitCode != nil && *r.ExitCode == 137
	if killed && !r.KilledAll {
		r.OOMKilled = c.agent.cgroup.oomKills() > c.ooms
	}
	r.Output = c.out.output()
}

// end interrupts the script; where the shell does not come back for that, it is replaced.
func (c *sessionCall) end() {
	if c.interrupt() {
		c.finish()
		return
	}
	c.kill()
	c.drop()
	c.result.Session = sessionLost
	if c.saved != nil && c.restart() {
		c.result.Session = sessionRestarted
	}
	c.describe()
}

// interrupt ends what the script started and brings the shell back to its loop; true: it is there, and nothing of the call is left.
func (c *sessionCall) interrupt() bool {
	sh := c.session.shell
	mine := tree{tag: sh.tag, root: sh.livingPid, uid: c.uid(), spared: c.before, keepRoot: true}
	deadline := time.Now().Add(interruptLimit)
	for back := false; !back; {
		if time.Now().After(deadline) {
			return false
		}
		sh.signal(syscall.SIGINT)
		sh.signal(syscall.SIGCONT)
		c.agent.killer.sweep(mine, interruptSweep)
		select {
		case <-c.hearing.status:
			back = true
		case <-sh.gone:
			return false
		case <-time.After(interruptPause):
		}
	}
	return c.agent.killer.sweep(mine, sweepLimit)
}

// kill ends the shell and what the call started.
func (c *sessionCall) kill() {
	sh := c.session.shell
	whole := tree{tag: sh.tag, root: sh.livingPid, uid: c.uid(), spared: c.before}
	if !c.agent.killer.sweep(whole, sweepLimit) {
		c.result.KilledAll = true
		c.agent.commands.condemn(c)
		if err := c.agent.killer.killUID(c.uid()); err != nil {
			logf("kill all: %v", err)
		}
	}
	select {
	case <-sh.gone:
	case <-time.After(endGrace):
		logf("session shell %d outlives SIGKILL", sh.pid)
	}
}

// restart puts a fresh shell with the saved state into the session.
func (c *sessionCall) restart() bool {
	if !c.agent.sessions.take(&c.agent.unheard) {
		return false
	}
	fresh, refused := c.agent.startShell(c.op)
	if refused != nil {
		c.agent.sessions.give()
		return false
	}
	c.session.shell = fresh
	if c.restored(fresh) {
		return true
	}
	c.kill()
	c.drop()
	return false
}

func (c *sessionCall) restored(fresh *shell) bool {
	script, err := c.agent.putScript(c.op.Name, c.saved.script())
	if err != nil {
		return false
	}
	defer script.remove()
	fresh.listen(newCapture(0, 0))
	defer fresh.mute()
	heard := fresh.order(rand.Text(), script.path)
	select {
	case <-heard.status:
		return true
	case <-fresh.gone:
	case <-time.After(interruptLimit):
	}
	return false
}
