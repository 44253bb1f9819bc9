package main

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

// shellLoop is what a session's shell runs: orders come from descriptor 3 as lines of shell, status and state go to 4, and what
// scripts print to 5. Nothing of the loop's own is seen in a script's output: its 0, 1 and 2 are /dev/null.
const shellLoop = `while IFS= command read -r _tiltyard <&3; do command eval "$_tiltyard"; done`

// shellOrder runs the script at a path between two marks. The script has neither 3, 4 nor 5, and what it does to 0, 1 and 2 ends with it.
// `command` keeps a syntax error from ending a POSIX shell, and functions of the same name away. SIGINT brings the shell back
// from the script, and is nothing to it outside.
const shellOrder = `command trap 'return 130' INT; command . %[1]s <%[2]s >&5 2>&5 3<&- 4>&- 5>&-; ` +
	`{ command echo %[3]s $?; command trap '' INT; command export -p; %[4]scommand echo %[3]s cwd; command pwd -P; ` +
	`command echo %[3]s end; } >&4 2>/dev/null` + "\n"

const (
	// maxStateBytes bounds what is kept of a shell's exported variables and functions.
	maxStateBytes = 256 << 10
	// hearingChunk is after how many bytes the reading of a shell's state pauses: a script may have got hold of descriptor 4.
	hearingChunk = 1 << 20
	scriptsName  = "sessions"
)

var shellPrograms = []string{"/bin/bash", "/bin/sh"}

// shell is one process in its loop, with our ends of its pipes.
type shell struct {
	pid    int
	tag    uint32
	tty    bool
	bash   bool
	gone   chan struct{} // closed when the process has ended
	ended  syscall.WaitStatus
	orders *os.File
	news   *os.File
	reader *bufio.Reader
	output *os.File
	echo   *os.File // our own way into the terminal's output; nil without one
	stream *stream
	last   *hearing
}

// shellState brings a fresh shell to where another one was.
type shellState struct {
	cwd   []byte
	words []byte // exported variables, and with bash functions, as shell text
}

func (s *shellState) script() []byte {
	text := append([]byte{}, s.words...)
	if len(s.cwd) > 0 {
		text = append(text, "\ncd -- "+quoted(string(s.cwd))+"\n"...)
	}
	return text
}

// quoted is one word of shell.
func quoted(text string) string { return "'" + strings.ReplaceAll(text, "'", `'\''`) + "'" }

// hearing is what one order brings back: the script's status, then the shell's state.
type hearing struct {
	status  chan int
	settled chan struct{} // closed when the shell is back, or gone
	state   *shellState   // nil: too large, or never told
}

// startShell starts the first shell there is, in the workspace.
func (a *agent) startShell(op *sessionOp) (*shell, *Failure) {
	var refused *Failure
	for _, program := range shellPrograms {
		sh := &shell{tag: a.nextTag(), tty: op.TTY, bash: filepath.Base(program) == "bash", gone: make(chan struct{})}
		if refused = a.spawnShell(sh, program, op); refused == nil {
			return sh, nil
		}
		sh.release()
	}
	return nil, refused
}

func (a *agent) spawnShell(sh *shell, program string, op *sessionOp) *Failure {
	var theirs []*os.File
	defer func() {
		for _, file := range theirs {
			_ = file.Close()
		}
	}()
	files, refused := a.openShell(sh, op, &theirs)
	if refused != nil {
		return refused
	}
	uid, directory := a.config.UID(0), a.paths.directory(".")
	attr := &syscall.ProcAttr{Dir: directory, Files: files, Sys: a.credentials(uid, sh.tag)}
	env := a.environment(sh.tag)
	if sh.tty {
		env["TERM"] = "dumb" // isatty, but nothing that would draw
		attr.Sys.Setctty, attr.Sys.Ctty = true, 5
	}
	attr.Env = flatten(env)
	pid, status, err := a.reaper.spawn(program, []string{filepath.Base(program), "-c", shellLoop}, attr)
	if err != nil {
		return a.cannotStart(uid, &execOp{Argv: []string{program}, Cwd: "."}, directory, err)
	}
	sh.pid, sh.reader = pid, bufio.NewReader(sh.news)
	go func() {
		sh.ended = <-status
		close(sh.gone)
	}()
	a.raiseOOM(uid, pid)
	sh.last = &hearing{settled: finishedChannel, state: &shellState{}}
	sh.listen(newCapture(0, 0))
	return nil
}

// openShell makes the descriptors 0 to 5 of the shell.
func (a *agent) openShell(sh *shell, op *sessionOp, theirs *[]*os.File) (files []uintptr, refused *Failure) {
	full := refuse(codeCannotStart, "no descriptor is free in the box's agent")
	null := a.null.Fd()
	orders, mine, err := pipe(false)
	if err != nil {
		return nil, full
	}
	*theirs, sh.orders = append(*theirs, orders), mine
	news, mine, err := pipe(true)
	if err != nil {
		return nil, full
	}
	*theirs, sh.news = append(*theirs, news), mine
	var output *os.File
	if op.TTY {
		if output, refused = a.openTerminal(sh, op.Rows, op.Columns); refused != nil {
			return nil, refused
		}
	} else if output, sh.output, err = pipe(true); err != nil {
		return nil, full
	}
	*theirs = append(*theirs, output)
	return []uintptr{null, null, null, orders.Fd(), news.Fd(), output.Fd()}, nil
}

// over is true once the process has ended.
func (sh *shell) over() bool {
	select {
	case <-sh.gone:
		return true
	default:
		return false
	}
}

func (sh *shell) livingPid() int {
	if sh.over() {
		return 0
	}
	return sh.pid
}

func (sh *shell) signal(signal syscall.Signal) {
	if pid := sh.livingPid(); pid != 0 {
		kill1(pid, signal)
	}
}

// settle waits until the shell has told its state after the last call; nil where it does not.
func (sh *shell) settle(expired, cancel <-chan struct{}) *shellState {
	select {
	case <-sh.last.settled:
		return sh.last.state
	case <-sh.gone:
	case <-expired:
	case <-cancel:
	}
	return nil
}

// order has the shell run the script. A shell that is gone tells so by its end.
func (sh *shell) order(nonce, script string) *hearing {
	functions, input := "", "/dev/null"
	if sh.bash {
		functions = "command declare -f; "
	}
	if sh.tty {
		input = "&5"
	}
	h := &hearing{status: make(chan int, 1), settled: make(chan struct{})}
	before := sh.last
	go func() {
		<-before.settled
		h.hear(sh.reader, nonce)
	}()
	sh.last = h
	_ = sh.orders.SetWriteDeadline(time.Now().Add(interruptLimit))
	_, _ = fmt.Fprintf(sh.orders, shellOrder, quoted(script), input, nonce, functions)
	return h
}

// hear reads what an order brings back. The marks are unknown to scripts, but not to a function of theirs by the name `command`; what is no
// mark or no status is passed over.
func (h *hearing) hear(from *bufio.Reader, nonce string) {
	defer close(h.settled)
	heard := &pacedLines{from: from}
	for {
		line, err := heard.next()
		if err != nil {
			return
		}
		if rest, is := bytes.CutPrefix(line, []byte(nonce+" ")); is {
			if code, err := strconv.ParseUint(string(bytes.TrimSuffix(rest, []byte("\n"))), 10, 8); err == nil {
				h.status <- int(code)
				break
			}
		}
	}
	words, err := heard.until(nonce + " cwd\n")
	if err != nil {
		return
	}
	cwd, err := heard.until(nonce + " end\n")
	if err == nil && words != nil && cwd != nil {
		h.state = &shellState{words: words, cwd: bytes.TrimSuffix(cwd, []byte("\n"))}
	}
}

// pacedLines reads lines, slowly once they are many; long ones come in parts.
type pacedLines struct {
	from  *bufio.Reader
	total int
}

func (p *pacedLines) next() ([]byte, error) {
	line, err := p.from.ReadSlice('\n')
	if err == bufio.ErrBufferFull {
		err = nil
	}
	if p.total += len(line); p.total > hearingChunk {
		p.total = 0
		time.Sleep(floodPause)
	}
	return line, err
}

// until is all before the line `mark`; nil where that is more than is kept.
func (p *pacedLines) until(mark string) ([]byte, error) {
	kept, whole, fresh := []byte{}, true, true
	for {
		line, err := p.next()
		if err != nil {
			return nil, err
		}
		if fresh && string(line) == mark {
			if !whole {
				kept = nil
			}
			return kept, nil
		}
		fresh = line[len(line)-1] == '\n'
		if whole = whole && len(kept)+len(line) <= maxStateBytes; whole {
			kept = append(kept, line...)
		}
	}
}

// listen lets what the shell prints from now on go to `out`; what came before is dropped.
func (sh *shell) listen(out *capture) {
	if sh.stream != nil {
		sh.stream.pause()
	}
	sh.stream = newStream(sh.output, out)
}

// mute ends the call's output with what the shell has printed until now; from then on it is read and dropped.
func (sh *shell) mute() {
	if sh.echo == nil {
		sh.stream.pause()
	} else {
		sh.stream.pauseAfterMark(sh.echo)
	}
	sh.stream = newStream(sh.output, newCapture(0, 0))
}

// close lets go of a shell whose process is gone.
func (sh *shell) close(unheard *atomic.Int32) {
	if sh.echo != nil {
		sh.stream.pauseAfterMark(sh.echo)
	} else {
		sh.stream.finish(unheard)
		sh.output = nil
	}
	sh.release()
}

// release closes our ends of what was opened.
func (sh *shell) release() {
	for _, file := range []*os.File{sh.orders, sh.news, sh.output, sh.echo} {
		if file != nil {
			_ = file.Close()
		}
	}
}

// script is a file that a session's shell reads: root's, in a folder of root's, so no command can change or find it.
type script struct{ path string }

// putScript writes it; the last one of that session is gone by then.
func (a *agent) putScript(name string, text []byte) (*script, error) {
	s := &script{path: filepath.Join(filepath.Dir(a.config.Socket), scriptsName, name)}
	s.remove()
	if err := os.WriteFile(s.path, text, 0o444); err != nil {
		s.remove()
		return nil, err
	}
	return s, nil
}

func (s *script) remove() { _ = os.Remove(s.path) }
