package main

import (
	"net/http"
	"time"
)

func (a *agent) getHealth(w http.ResponseWriter, _ *http.Request) error {
	if err := a.alive(); err != nil {
		return err
	}
	reply(w, http.StatusOK, a.health())
	return nil
}

func (a *agent) postLease(w http.ResponseWriter, r *http.Request) error {
	if err := a.alive(); err != nil {
		return err
	}
	f, err := object(w, r)
	if err != nil {
		return err
	}
	rollout, epoch := f.required("rollout"), f.integer("epoch", -1, 0, 1<<53)
	if rollout == "" || len(rollout) > 8192 || epoch < 0 {
		f.fail("rollout", "1 to 8192 bytes, beside an epoch")
	}
	if err := f.finish(); err != nil {
		return badRequest("%s", err)
	}
	if !a.gate.granted(r, epoch) {
		return errBadToken
	}
	granted, refused := a.registry.lease(rollout, epoch)
	if refused != nil {
		return refused
	}
	granted.BootID = a.bootID
	reply(w, http.StatusOK, granted)
	return nil
}

func (a *agent) putOp(w http.ResponseWriter, r *http.Request) error {
	n, err := parseID(r.PathValue("key"), r.PathValue("n"))
	if err != nil {
		return badRequest("%s", err)
	}
	wait, err := waitTime(r)
	if err != nil {
		return err
	}
	raw, err := body(w, r, maxOperationBytes)
	if err != nil {
		return err
	}
	op, head, err := parseRequest(raw)
	if err != nil {
		return badRequest("%s", err)
	}
	state, fresh, refused := a.registry.begin(r.PathValue("key"), n, op, head)
	if refused != nil {
		return refused
	}
	if fresh {
		a.start(state, op)
	}
	return a.answer(w, r, state, wait)
}

func (a *agent) getOp(w http.ResponseWriter, r *http.Request) error {
	state, err := a.named(r)
	if err != nil {
		return err
	}
	wait, err := waitTime(r)
	if err != nil {
		return err
	}
	return a.answer(w, r, state, wait)
}

func (a *agent) named(r *http.Request) (*opState, error) {
	n, err := parseID(r.PathValue("key"), r.PathValue("n"))
	if err != nil {
		return nil, badRequest("%s", err)
	}
	state, refused := a.registry.find(r.PathValue("key"), n)
	if refused != nil {
		return nil, refused
	}
	return state, nil
}

// answer long-polls. A finished operation's reply has the same bytes each time.
func (a *agent) answer(w http.ResponseWriter, r *http.Request, state *opState, wait time.Duration) error {
	if !linger(r.Context(), a.registry.doneChannel(state), wait) {
		send(w, http.StatusAccepted, []byte(`{"state":"running"}`))
		return nil
	}
	result, err := a.registry.kept(state)
	if err != nil {
		return err
	}
	send(w, http.StatusOK, []byte(`{"state":"done","result":`), result, []byte("}"))
	return nil
}

func (a *agent) deleteOp(w http.ResponseWriter, r *http.Request) error {
	state, err := a.named(r)
	if err != nil {
		return err
	}
	a.registry.stop(state)
	return a.answer(w, r, state, sweepLimit+killAllLimit+endGrace)
}

// streamOp sends an exec's standard output as it comes. A reader that falls behind by more than what is kept misses what lies between.
func (a *agent) streamOp(w http.ResponseWriter, r *http.Request) error {
	state, err := a.named(r)
	if err != nil {
		return err
	}
	out := a.registry.stdout(state)
	w.Header().Set("Content-Type", "application/octet-stream")
	control := http.NewResponseController(w)
	for offset, over := int64(0), out == nil; !over; {
		var data []byte
		var more <-chan struct{}
		data, offset, over, more = out.after(offset)
		if _, err := w.Write(data); err != nil {
			return nil
		}
		if err := control.Flush(); err != nil {
			return nil
		}
		if over {
			break
		}
		select {
		case <-more:
		case <-r.Context().Done():
			return nil
		}
	}
	return nil
}

func (a *agent) postAck(w http.ResponseWriter, r *http.Request) error {
	f, err := object(w, r)
	if err != nil {
		return err
	}
	keys := f.list("calls", 0, 10_000)
	if err := f.finish(); err != nil {
		return badRequest("%s", err)
	}
	for _, key := range keys {
		if _, err := parseID(key, "0"); err != nil {
			return badRequest("%s", err)
		}
	}
	if refused := a.registry.acknowledge(keys); refused != nil {
		return refused
	}
	send(w, http.StatusOK, []byte("{}"))
	return nil
}

func (a *agent) postFreeze(w http.ResponseWriter, _ *http.Request) error {
	a.registry.freeze()
	a.reaper.close()
	killed, err := a.killer.freeze()
	if err != nil {
		return err
	}
	reply(w, http.StatusOK, map[string]int{"killed": killed})
	return nil
}
