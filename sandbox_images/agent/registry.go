package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"sync"
)

// registry is the agent's memory of calls and operations, and its lease. Decisions are made under one lock and never wait.
type registry struct {
	mu      sync.Mutex
	journal *journal
	rollout string
	leased  bool
	epoch   int64
	frozen  bool
	seeds   int // that are being unpacked
	calls   map[string]*call
	order   []*call
	acked   map[string]bool
	running int
}

type call struct {
	key       string
	sequence  int64
	tool      string
	arguments ref
	ops       []*opState
}

// opState is one operation: running until done is closed, then kept in the journal (or here, where the journal had no room).
type opState struct {
	digest   digest
	done     chan struct{}
	cancel   chan struct{}
	stopped  bool // cancel is closed
	finished bool
	dropped  bool // acknowledged: nobody will ask again
	result   ref
	spare    []byte
	stdout   *capture // an exec's, while it runs
}

// apiError is a refusal of the protocol: status, code and text.
type apiError struct {
	status  int
	code    string
	message string
}

func (e *apiError) Error() string { return e.message }

func badRequest(format string, arguments ...any) *apiError {
	return &apiError{http.StatusBadRequest, "bad_request", fmt.Sprintf(format, arguments...)}
}

const (
	// maxRunning bounds what one box runs at once; a host never comes near it.
	maxRunning = 256
	// resultReserve is the room an operation must find before it begins, so that its result is kept.
	resultReserve = 2 << 20
)

var finishedChannel = func() chan struct{} { c := make(chan struct{}); close(c); return c }()

func newRegistry(j *journal) *registry {
	return &registry{journal: j, calls: map[string]*call{}, acked: map[string]bool{}}
}

// fence refuses requests of another rollout or another epoch than the lease's.
func (r *registry) fence(rollout string, epoch int64) *apiError {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case !r.leased:
		return &apiError{http.StatusConflict, "not_leased", "take the lease first"}
	case rollout != r.rollout:
		return &apiError{http.StatusConflict, "other_rollout", "the box is leased to another rollout"}
	case epoch < r.epoch:
		return &apiError{http.StatusConflict, "stale_epoch", fmt.Sprintf("the lease is at epoch %d", r.epoch)}
	case epoch > r.epoch:
		return &apiError{http.StatusConflict, "not_leased", "take the lease at this epoch first"}
	}
	return nil
}

// beginSeed refuses a box that somebody has. Until endSeed nobody gets it, so that no command can race the seed.
func (r *registry) beginSeed() *apiError {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.leased {
		return &apiError{http.StatusConflict, "leased", "a box is seeded before its lease"}
	}
	r.seeds++
	return nil
}

func (r *registry) endSeed() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.seeds--
}

// pendingCall is a call that began and is not acknowledged.
type pendingCall struct {
	Key        string          `json:"key"`
	Sequence   int64           `json:"sequence"`
	Tool       string          `json:"tool"`
	Arguments  json.RawMessage `json:"arguments"`
	Operations int             `json:"operations"`
}

type leaseReply struct {
	BootID  string        `json:"boot_id"`
	Epoch   int64         `json:"epoch"`
	Frozen  bool          `json:"frozen"`
	Pending []pendingCall `json:"pending"`
}

func (r *registry) lease(rollout string, epoch int64) (*leaseReply, *apiError) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.seeds > 0 {
		return nil, &apiError{http.StatusServiceUnavailable, "busy", "the box is being seeded"}
	}
	if r.leased && rollout != r.rollout {
		return nil, &apiError{http.StatusConflict, "other_rollout", "the box is leased to another rollout"}
	}
	if r.leased && epoch < r.epoch {
		return nil, &apiError{http.StatusConflict, "stale_epoch", fmt.Sprintf("the lease is at epoch %d", r.epoch)}
	}
	r.rollout, r.epoch, r.leased = rollout, epoch, true
	reply := &leaseReply{Epoch: epoch, Frozen: r.frozen, Pending: []pendingCall{}}
	for _, c := range r.order {
		arguments, err := r.journal.read(c.arguments)
		if err != nil {
			return nil, &apiError{http.StatusInternalServerError, "journal", "a journal record cannot be read"}
		}
		reply.Pending = append(reply.Pending, pendingCall{c.key, c.sequence, c.tool, arguments, len(c.ops)})
	}
	return reply, nil
}

// begin joins the operation, or journals and enters it: fresh is then true and the caller must run it.
func (r *registry) begin(key string, n int, op operation, head *header) (state *opState, fresh bool, refused *apiError) {
	print := fingerprint(op)
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.acked[key] {
		return nil, false, &apiError{http.StatusGone, "tombstoned", "the call was acknowledged"}
	}
	c := r.calls[key]
	if c != nil && n < len(c.ops) {
		if state = c.ops[n]; state.digest != print {
			return nil, false, &apiError{http.StatusConflict, "replay_diverged", "the operation began with another body"}
		}
		return state, false, nil
	}
	if refused := r.admit(c, key, n, head); refused != nil {
		return nil, false, refused
	}
	if c, refused = r.enter(c, key, n, print, head); refused != nil {
		return nil, false, refused
	}
	state = &opState{digest: print, done: make(chan struct{}), cancel: make(chan struct{})}
	c.ops = append(c.ops, state)
	r.running++
	return state, true, nil
}

// admit decides whether an operation that is not known yet may begin.
func (r *registry) admit(c *call, key string, n int, head *header) *apiError {
	known := 0
	if c != nil {
		known = len(c.ops)
	}
	switch {
	case r.frozen:
		return &apiError{http.StatusConflict, "frozen", "the box is frozen"}
	case n != known:
		return badRequest("operation %d comes next, not %d", known, n)
	case (n == 0) != (head != nil):
		return badRequest("operation 0 carries the call, and no other one does")
	case head != nil && head.Key != key:
		return badRequest("the call's key is not the operation's")
	case r.running >= maxRunning:
		return &apiError{http.StatusServiceUnavailable, "busy", "too many operations run"}
	case !r.journal.room(resultReserve):
		return &apiError{http.StatusInsufficientStorage, "journal_full", errJournalFull.Error()}
	}
	return nil
}

// enter writes the operation down before it has any effect.
func (r *registry) enter(c *call, key string, n int, print digest, head *header) (*call, *apiError) {
	full := &apiError{http.StatusInsufficientStorage, "journal_full", errJournalFull.Error()}
	if head != nil {
		c = &call{key: key, sequence: head.Sequence, tool: head.Tool}
		meta, err := json.Marshal(header{key, head.Sequence, head.Tool, json.RawMessage("{}")})
		if err != nil {
			panic(err)
		}
		if _, err = r.journal.append(recordCall, meta); err != nil {
			return nil, full
		}
		if c.arguments, err = r.journal.append(recordArguments, head.Arguments); err != nil {
			return nil, full
		}
	}
	if _, err := r.journal.append(recordBegin, fmt.Appendf(nil, "%s/%d %x", key, n, print)); err != nil {
		return nil, full
	}
	if head != nil {
		r.calls[key] = c
		r.order = append(r.order, c)
	}
	return c, nil
}

// finish keeps the result of an operation that ran. With the journal full it is kept in memory: it must not be lost.
func (r *registry) finish(state *opState, result []byte) {
	where, err := r.journal.append(recordResult, result)
	r.mu.Lock()
	defer r.mu.Unlock()
	state.result = where
	switch {
	case state.dropped && err == nil:
		r.journal.forget(where)
	case err != nil && !state.dropped:
		state.spare = result
	}
	state.finished, state.stdout, state.cancel = true, nil, nil
	close(state.done)
	state.done = finishedChannel
	r.running--
	r.settle()
}

// kept is the result of a finished operation, byte for byte.
func (r *registry) kept(state *opState) ([]byte, error) {
	r.mu.Lock()
	where, spare := state.result, state.spare
	r.mu.Unlock()
	if spare != nil {
		return spare, nil
	}
	return r.journal.read(where)
}

func (r *registry) find(key string, n int) (*opState, *apiError) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.acked[key] {
		return nil, &apiError{http.StatusGone, "tombstoned", "the call was acknowledged"}
	}
	if c := r.calls[key]; c != nil && n < len(c.ops) {
		return c.ops[n], nil
	}
	return nil, &apiError{http.StatusNotFound, "unknown_op", "this operation never began"}
}

// stop asks a running operation to end; a finished one stays as it is.
func (r *registry) stop(state *opState) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !state.finished && !state.stopped {
		state.stopped = true
		close(state.cancel)
	}
}

// watch lets others follow a fresh operation's output; the channel tells it to end.
func (r *registry) watch(state *opState, out *capture) (cancel <-chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	state.stdout = out
	return state.cancel
}

func (r *registry) stdout(state *opState) *capture {
	r.mu.Lock()
	defer r.mu.Unlock()
	return state.stdout
}

// doneChannel is closed when the operation has finished.
func (r *registry) doneChannel(state *opState) <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	return state.done
}

// acknowledge drops the calls' results and leaves tombstones. What still runs goes on unheard.
func (r *registry) acknowledge(keys []string) *apiError {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, key := range keys {
		if r.acked[key] {
			continue
		}
		if _, err := r.journal.append(recordAck, []byte(key)); err != nil {
			return &apiError{http.StatusInsufficientStorage, "journal_full", errJournalFull.Error()}
		}
		r.acked[key] = true
		if c := r.calls[key]; c != nil {
			r.drop(c)
		}
	}
	r.settle()
	return nil
}

// settle tells the journal when nothing in it is waited for.
func (r *registry) settle() {
	if len(r.calls) == 0 && r.running == 0 {
		r.journal.nothingKept()
	}
}

func (r *registry) drop(c *call) {
	delete(r.calls, c.key)
	for index, other := range r.order {
		if other == c {
			r.order = append(r.order[:index:index], r.order[index+1:]...)
			break
		}
	}
	r.journal.forget(c.arguments)
	for _, state := range c.ops {
		state.dropped = true
		if state.finished && state.spare == nil {
			r.journal.forget(state.result)
		}
		state.spare = nil
	}
}

func (r *registry) freeze() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.frozen = true
}
