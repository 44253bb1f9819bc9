package main

import (
	"crypto/rand"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"
)

// protocolVersion 2 is 1 and the operation `session`.
const protocolVersion = 2

// agent owns everything a box has running.
type agent struct {
	config   *Config
	bootID   string
	started  time.Time
	lost     bool // another agent process served this box before: nothing may run
	null     *os.File
	paths    *paths
	crew     *crew // long work on files
	quick    *crew // short work that a command's start waits for
	reaper   *reaper
	killer   *killer
	commands *commands
	sessions *sessions
	registry *registry
	cgroup   *cgroup
	kernel   kernel
	trimmer  *trimmer
	gate     *gatekeeper
	tags     atomic.Uint32
	unheard  atomic.Int32 // streams of processes left in the background
}

const fileThreads = 4

// newAgent makes folders, threads and the journal; it must run before the socket is there.
func newAgent(config *Config) (*agent, error) {
	a := &agent{
		config: config, bootID: rand.Text(), started: time.Now(), commands: newCommands(), sessions: newSessions(),
		cgroup: openCgroup(), kernel: readKernel(),
	}
	if err := os.MkdirAll(config.TrustedDir, 0o755); err != nil {
		return nil, err
	}
	if err := os.Chmod(config.TrustedDir, 0o755); err != nil {
		return nil, err
	}
	if err := makeScripts(config); err != nil {
		return nil, err
	}
	j, err := openJournal(config.StateDir, config.JournalLimit)
	if err == errLostBoot {
		a.lost = true
		return a, nil
	}
	if err != nil {
		return nil, err
	}
	a.registry = newRegistry(j)
	return a, a.openTools()
}

// makeScripts makes the folder that sessions' shells read scripts from: to be entered by all, listed and written by the agent alone.
func makeScripts(config *Config) error {
	folder := filepath.Join(filepath.Dir(config.Socket), scriptsName)
	if err := os.MkdirAll(folder, 0o711); err != nil {
		return err
	}
	return os.Chmod(folder, 0o711)
}

func (a *agent) openTools() (err error) {
	if a.null, err = os.OpenFile("/dev/null", os.O_RDWR, 0); err != nil {
		return err
	}
	if a.paths, err = openPaths(a.config); err != nil {
		return err
	}
	if a.killer, err = newKiller(a.config); err != nil {
		return err
	}
	a.crew, a.quick = newCrew(fileThreads, a.config.OneUID), newCrew(1, a.config.OneUID)
	a.reaper = newReaper()
	a.trimmer = newTrimmer()
	return reserveThreads(a.config.SpareThreads)
}

func (a *agent) nextTag() uint32 { return tagBase + a.tags.Add(1)%tagRange }

// start runs an operation to its end, whoever listens.
func (a *agent) start(state *opState, op operation) {
	var out *capture
	switch op := op.(type) {
	case *execOp:
		out = newCapture(op.OutputLimit, op.OutputLimit/2)
	case *sessionOp:
		out = newCapture(op.OutputLimit, op.OutputLimit/2)
	}
	cancel := a.registry.watch(state, out)
	a.trimmer.begin()
	go func() {
		defer a.trimmer.end()
		var result any
		if failure := guarded(func() { result = a.perform(op, out, cancel) }); failure != nil {
			logf("operation %s: %v", op.kind(), failure)
			result = refuse(codeIO, "the box's agent failed at this operation")
		}
		encoded, err := json.Marshal(result)
		if err != nil {
			encoded = []byte(`{"type":"failure","code":"io","message":"the result has no text form"}`)
		}
		a.registry.finish(state, encoded)
	}()
}

// perform is the operation itself; whatever refuses it becomes its result.
func (a *agent) perform(op operation, out *capture, cancel <-chan struct{}) any {
	switch op := op.(type) {
	case *refusedOp:
		return refuse(codeNotText, op.Reason)
	case *noteOp:
		return &noteResult{Type: "note", Data: op.Data}
	case *execOp:
		if refused := a.mayRun(op); refused != nil {
			return refused
		}
		return a.runExec(op, out, cancel)
	case *sessionOp:
		return a.runSession(op, out, cancel)
	}
	var result any
	a.crew.as(a.config.UID(0), func() { result = a.onFiles(op) })
	return result
}

// mayRun checks what a command asks for against what this box grants.
func (a *agent) mayRun(op *execOp) *Failure {
	switch {
	case op.hasNul():
		return refuse(codeCannotStart, "arguments, environment or working directory hold a NUL byte")
	case op.Trusted && !a.config.AllowRoot:
		return refuse(codePermission, "this box runs no trusted commands")
	case op.Principal >= a.config.UIDCount:
		return refuse(codePermission, fmt.Sprintf("this box has %d principals", a.config.UIDCount))
	}
	return nil
}

// onFiles runs on a thread with the command's rights.
func (a *agent) onFiles(op operation) any {
	var result any
	var err error
	asked := ""
	switch op := op.(type) {
	case *readOp:
		asked = op.Path
		result, err = a.paths.read(op)
	case *writeOp:
		asked = op.Path
		result, err = a.paths.write(op)
	case *editOp:
		asked = op.Path
		result, err = a.paths.edit(op)
	case *listOp:
		asked = op.Path
		result, err = a.paths.list(op)
	case *globOp:
		asked = op.Path
		result, err = a.paths.glob(op)
	case *searchOp:
		asked = op.Path
		result, err = a.paths.search(op)
	}
	if err != nil {
		return refusal(asked, err)
	}
	return result
}

type noteResult struct {
	Type string `json:"type"`
	Data []byte `json:"data_b64"`
}
