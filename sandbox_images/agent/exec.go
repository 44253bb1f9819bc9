package main

import (
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const (
	maxEventBytes = 4 << 20
	// endGrace is how long a killed process may take to end before the reply is given without its status (uninterruptible waits).
	endGrace = 5 * time.Second
)

// ExecResult mirrors docs/agent-protocol.md.
type ExecResult struct {
	Type      string  `json:"type"`
	ExitCode  *int    `json:"exit_code"`
	Signal    *string `json:"signal"`
	TimedOut  bool    `json:"timed_out"`
	Cancelled bool    `json:"cancelled"`
	OOMKilled bool    `json:"oom_killed"`
	KilledAll bool    `json:"killed_all"`
	Stdout    Output  `json:"stdout"`
	Stderr    Output  `json:"stderr"`
	Events    []byte  `json:"events_b64"`
	EventsCut bool    `json:"events_cut"`
}

// command is one running exec.
type command struct {
	agent   *agent
	op      *execOp
	tag     uint32
	pid     int
	status  <-chan syscall.WaitStatus
	ended   *syscall.WaitStatus
	stdin   *os.File
	streams []*stream
	stdout  *capture
	stderr  *capture
	events  *capture
	ooms    int64
}

// runExec starts the command and returns when its own process has ended or been ended; cancel is closed to end it early.
func (a *agent) runExec(op *execOp, out *capture, cancel <-chan struct{}) any {
	c := &command{agent: a, op: op, tag: a.nextTag(), stdout: out}
	c.ooms = a.cgroup.oomKills()
	if refusal := c.start(); refusal != nil {
		out.close()
		return refusal
	}
	a.commands.add(c)
	defer a.commands.remove(c)
	if c.stdin != nil {
		go feed(c.stdin, op.Stdin)
	}
	return c.await(cancel)
}

// feed ends when all is written or the reading side is gone.
func feed(stdin *os.File, data []byte) {
	_, _ = stdin.Write(data)
	_ = stdin.Close()
}

func (c *command) await(cancel <-chan struct{}) any {
	result := &ExecResult{Type: "exec"}
	timer := time.NewTimer(time.Duration(c.op.Timeout * float64(time.Second)))
	defer timer.Stop()
	select {
	case status := <-c.status:
		c.ended = &status
	case <-timer.C:
		result.TimedOut = true
	case <-cancel:
		result.Cancelled = true
	}
	if c.ended == nil {
		result.KilledAll = c.end()
	}
	c.describe(result)
	return result
}

// end kills the tree and waits for the process; true when all commands of that uid had to die with it.
func (c *command) end() (killedAll bool) {
	a := c.agent
	gone := a.killer.sweep(tree{tag: c.tag, root: c.livingPid, uid: c.uid()}, sweepLimit)
	if gone && c.op.Trusted {
		a.endStrays()
	}
	if !gone {
		killedAll = true
		a.commands.condemn(c)
		if err := a.killer.killUID(c.uid()); err != nil {
			logf("kill all: %v", err)
		}
	}
	select {
	case status := <-c.status:
		c.ended = &status
	case <-time.After(endGrace):
		logf("process %d outlives SIGKILL", c.pid)
	}
	return killedAll
}

// describe fills the result from the wait status and the kept streams.
func (c *command) describe(result *ExecResult) {
	if c.stdin != nil {
		_ = c.stdin.Close()
	}
	for _, s := range c.streams {
		s.finish(&c.agent.unheard)
	}
	code, name := -1, "SIGKILL"
	if c.ended != nil && c.ended.Exited() {
		code = c.ended.ExitStatus()
		result.ExitCode = &code
	} else {
		if c.ended != nil {
			name = signalName(c.ended.Signal())
		}
		result.Signal = &name
	}
	result.KilledAll = result.KilledAll || c.agent.commands.condemned(c)
	ended := result.TimedOut || result.Cancelled || result.KilledAll
	if !ended && (name == "SIGKILL" && result.Signal != nil || code == 137) {
		result.OOMKilled = c.agent.cgroup.oomKills() > c.ooms
	}
	result.Stdout, result.Stderr = c.stdout.output(), Output{Head: []byte{}, Tail: []byte{}}
	if c.stderr != nil {
		result.Stderr = c.stderr.output()
	}
	result.Events = []byte{}
	if c.events != nil {
		kept := c.events.output()
		result.Events, result.EventsCut = kept.Head, kept.Cut > 0
	}
}

// livingPid is 0 once the process was reaped: its number may then be another's.
func (c *command) livingPid() int {
	if len(c.status) > 0 {
		return 0
	}
	return c.pid
}

func (c *command) everybodys() bool { return c.op.Trusted }

func (c *command) uid() int {
	if c.op.Trusted {
		return os.Getuid()
	}
	return c.agent.config.UID(c.op.Principal)
}

// start opens the pipes and starts the process, or says why it cannot.
func (c *command) start() *Failure {
	var theirs []*os.File
	defer func() {
		for _, file := range theirs {
			_ = file.Close()
		}
	}()
	files, theirs, refusal := c.open()
	if refusal != nil {
		return refusal
	}
	a, env := c.agent, c.environment()
	directory := a.paths.directory(c.op.Cwd)
	program, refusal := a.lookup(c.uid(), c.op.Argv[0], env, directory)
	if refusal != nil {
		c.abandon()
		return refusal
	}
	attr := &syscall.ProcAttr{Dir: directory, Env: flatten(env), Files: files, Sys: a.credentials(c.uid(), c.tag)}
	pid, status, err := a.reaper.spawn(program, c.op.Argv, attr)
	if err != nil {
		c.abandon()
		return a.cannotStart(c.uid(), c.op, directory, err)
	}
	c.pid, c.status = pid, status
	a.raiseOOM(c.uid(), pid)
	return nil
}

// credentials put a process into a session of its own, as that uid, with the tag.
func (a *agent) credentials(uid int, tag uint32) *syscall.SysProcAttr {
	sys := &syscall.SysProcAttr{Setsid: true}
	if a.config.OneUID {
		return sys
	}
	sys.Credential = &syscall.Credential{Uid: uint32(uid), Gid: uint32(uid)}
	if a.killer.tags {
		sys.Credential.Groups = []uint32{tag}
	}
	return sys
}

// open makes the pipes: `files` are the child's descriptors 0, 1, 2 and with events 3; `theirs` are closed here after the start.
func (c *command) open() (files []uintptr, theirs []*os.File, refusal *Failure) {
	input := c.agent.null
	if len(c.op.Stdin) > 0 {
		child, mine, err := pipe(false)
		if err != nil {
			return nil, nil, refuse(codeCannotStart, "no descriptor is free in the box's agent")
		}
		c.stdin, input, theirs = mine, child, append(theirs, child)
	}
	outputs := []**capture{&c.stdout, &c.stderr}
	if c.op.Merge {
		outputs = outputs[:1]
	}
	files = append(files, input.Fd())
	if c.op.Events {
		c.events = newCapture(maxEventBytes, maxEventBytes)
	}
	for _, target := range append(outputs, &c.events) {
		if target == &c.events && c.events == nil {
			continue
		}
		if *target == nil {
			*target = newCapture(c.op.OutputLimit, c.op.OutputLimit/2)
		}
		child, mine, err := pipe(true)
		if err != nil {
			c.abandon()
			return nil, theirs, refuse(codeCannotStart, "no descriptor is free in the box's agent")
		}
		theirs = append(theirs, child)
		c.streams = append(c.streams, newStream(mine, *target))
		files = append(files, child.Fd())
		if target == &c.stdout && c.op.Merge {
			files = append(files, child.Fd())
		}
	}
	return files, theirs, nil
}

// abandon closes our ends when no process came to be.
func (c *command) abandon() {
	if c.stdin != nil {
		_ = c.stdin.Close()
	}
	for _, s := range c.streams {
		_ = s.reader.Close()
	}
}

// pipe returns the child's end (blocking) and ours (in the runtime's poller: a waiting reader costs no thread).
func pipe(childWrites bool) (child, mine *os.File, err error) {
	var ends [2]int
	if err := syscall.Pipe2(ends[:], syscall.O_CLOEXEC); err != nil {
		return nil, nil, err
	}
	ours, yours := 0, 1
	if !childWrites {
		ours, yours = 1, 0
	}
	if err := syscall.SetNonblock(ends[ours], true); err != nil {
		_, _ = syscall.Close(ends[0]), syscall.Close(ends[1])
		return nil, nil, err
	}
	return os.NewFile(uintptr(ends[yours]), "theirs"), os.NewFile(uintptr(ends[ours]), "ours"), nil
}

// environment is the box's own; nothing of the agent's.
func (a *agent) environment(tag uint32) map[string]string {
	env := map[string]string{"HOME": a.config.Home}
	maps.Copy(env, a.config.Env)
	if !a.killer.tags {
		env[markName] = strconv.FormatUint(uint64(tag), 10)
	}
	return env
}

// environment is the box's, then the operation's; the mark is neither's.
func (c *command) environment() map[string]string {
	config := c.agent.config
	env := c.agent.environment(c.tag)
	mark, marked := env[markName]
	maps.Copy(env, c.op.Env)
	if marked {
		env[markName] = mark
	}
	if c.op.Trusted {
		env["TILTYARD_WORKSPACE"] = config.Workspace
		env["TILTYARD_TRUSTED_DIR"] = config.TrustedDir
		env["TILTYARD_UID_BASE"] = strconv.Itoa(config.UIDBase)
		env["TILTYARD_UID_COUNT"] = strconv.Itoa(config.UIDCount)
	}
	return env
}

func flatten(env map[string]string) []string {
	flat := make([]string, 0, len(env))
	for _, name := range slices.Sorted(maps.Keys(env)) {
		flat = append(flat, name+"="+env[name])
	}
	return flat
}

// lookup finds the program as a shell would. Most lie where everybody may look; for the rest the command's own rights are taken.
func (a *agent) lookup(uid int, name string, env map[string]string, directory string) (found string, refusal *Failure) {
	if strings.Contains(name, "/") {
		return name, nil // relative to the working directory, which the child enters first
	}
	if found = search(env["PATH"], name, directory, uid); found == "" {
		a.quick.as(uid, func() { found = search(env["PATH"], name, directory, uid) })
	}
	if found == "" {
		return "", refuse(codeCannotStart, fmt.Sprintf("%.200s: command not found", name))
	}
	return found, nil
}

func search(path, name, directory string, uid int) string {
	for _, place := range strings.Split(path, ":") {
		if place == "" || name == "" {
			continue
		}
		candidate := strings.TrimSuffix(place, "/") + "/" + name
		if place[0] != '/' {
			candidate = directory + "/" + candidate
		}
		if executable(candidate, uid) {
			return candidate
		}
	}
	return ""
}

// executable judges by the mode bits: access(2) would ask for the real uid, which is the agent's.
func executable(file string, uid int) bool {
	var stat syscall.Stat_t
	if again(func() error { return syscall.Stat(file, &stat) }) != nil || stat.Mode&syscall.S_IFMT != syscall.S_IFREG {
		return false
	}
	switch {
	case int(stat.Uid) == uid:
		return stat.Mode&0o100 != 0
	case int(stat.Gid) == uid:
		return stat.Mode&0o010 != 0
	default:
		return stat.Mode&0o001 != 0
	}
}

// cannotStart says why in words that do not change from one try to the next.
func (a *agent) cannotStart(uid int, op *execOp, directory string, err error) *Failure {
	if err == errFrozen {
		return refuse(codeCannotStart, errFrozen.Error())
	}
	usable := true
	a.quick.as(uid, func() {
		fd, failure := openAt(-100, directory, oPath|syscall.O_DIRECTORY, 0)
		if usable = failure == nil; usable {
			_ = syscall.Close(fd)
		}
	})
	switch {
	case !usable:
		return refuse(codeCannotStart, fmt.Sprintf("%.200s: the working directory is missing or closed to commands", op.Cwd))
	case err == syscall.EAGAIN || err == syscall.ENOMEM:
		return refuse(codeCannotStart, "the box's limit of processes or memory is reached")
	case err == syscall.E2BIG:
		return refuse(codeCannotStart, "arguments and environment are too long")
	case err == syscall.ENOENT:
		return refuse(codeCannotStart, fmt.Sprintf("%.200s: no such file, or its interpreter is missing", op.Argv[0]))
	case err == syscall.EACCES || err == syscall.EPERM:
		return refuse(codeCannotStart, fmt.Sprintf("%.200s: permission denied", op.Argv[0]))
	case err == syscall.ENOEXEC:
		return refuse(codeCannotStart, fmt.Sprintf("%.200s: not an executable format", op.Argv[0]))
	}
	return refuse(codeCannotStart, fmt.Sprintf("%.200s: %v", op.Argv[0], err))
}

// raiseOOM makes the command the first to go when the box's memory is full; it may lower that again, down to the container's own.
func (a *agent) raiseOOM(uid, pid int) {
	file := "/proc/" + strconv.Itoa(pid) + "/oom_score_adj"
	a.quick.as(uid, func() {
		fd, err := openAt(-100, file, syscall.O_WRONLY, 0)
		if err != nil {
			return // it is gone already
		}
		_ = writeFull(fd, []byte("1000"))
		_ = syscall.Close(fd)
	})
}

var signalNames = map[syscall.Signal]string{
	1: "SIGHUP", 2: "SIGINT", 3: "SIGQUIT", 4: "SIGILL", 5: "SIGTRAP", 6: "SIGABRT", 7: "SIGBUS", 8: "SIGFPE", 9: "SIGKILL",
	10: "SIGUSR1", 11: "SIGSEGV", 12: "SIGUSR2", 13: "SIGPIPE", 14: "SIGALRM", 15: "SIGTERM", 16: "SIGSTKFLT", 24: "SIGXCPU",
	25: "SIGXFSZ", 26: "SIGVTALRM", 27: "SIGPROF", 29: "SIGIO", 30: "SIGPWR", 31: "SIGSYS",
}

func signalName(signal syscall.Signal) string {
	if name, known := signalNames[signal]; known {
		return name
	}
	return fmt.Sprintf("SIG%d", int(signal))
}
