package main

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"syscall"
	"time"
)

const (
	maxOperationBytes = 4 << 20
	maxSmallBody      = 1 << 20
	maxStreamedBody   = 512 << 20
	maxHeaderBytes    = 16 << 10
	maxConnections    = 256
	maxWait           = 60 * time.Second
	bodyTimeout       = 30 * time.Second // for a body of at most 4 MiB on a local socket
	streamTimeout     = 10 * time.Minute // for put, get and delta
	idleTimeout       = 30 * time.Second // of a kept connection; a host lets go of it earlier
	refusedTimeout    = 2 * time.Second  // for the rest of a body of somebody without a token
)

// listen makes the socket for the agent's own uid only, whatever the umask is later.
func listen(file string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return nil, err
	}
	if err := os.Remove(file); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	before := syscall.Umask(0o177)
	defer syscall.Umask(before)
	return net.Listen("unix", file)
}

func (a *agent) listen() (net.Listener, error) {
	if a.config.Listen != "" {
		return listenTCP(a.config)
	}
	return listen(a.config.Socket)
}

// limited holds new connections back while there are too many.
type limited struct {
	net.Listener
	slots chan struct{}
}

type limitedConn struct {
	net.Conn
	release func()
}

func (l *limited) Accept() (net.Conn, error) {
	l.slots <- struct{}{}
	conn, err := l.Listener.Accept()
	if err != nil {
		<-l.slots
		return nil, err
	}
	released := make(chan struct{}, 1)
	return &limitedConn{conn, func() {
		select {
		case released <- struct{}{}:
			<-l.slots
		default:
		}
	}}, nil
}

func (c *limitedConn) Close() error {
	c.release()
	return c.Conn.Close()
}

// newServer bounds what one connection may cost: header bytes and time, idle time; bodies are bounded by each handler.
func newServer(handler http.Handler) *http.Server {
	return &http.Server{
		Handler: handler, MaxHeaderBytes: maxHeaderBytes, ReadHeaderTimeout: 5 * time.Second, IdleTimeout: idleTimeout,
		ErrorLog: log.New(io.Discard, "", 0), DisableGeneralOptionsHandler: true, // it would answer without a token
	}
}

func (a *agent) serve(listener net.Listener) error {
	return newServer(a.routes()).Serve(&limited{Listener: listener, slots: make(chan struct{}, maxConnections)})
}

type handler func(http.ResponseWriter, *http.Request) error

func (a *agent) routes() http.Handler {
	gate := newGatekeeper(a.config)
	a.gate = gate
	mux := http.NewServeMux()
	mux.Handle("GET /v1/health", a.wrap(a.getHealth))
	mux.Handle("POST /v1/lease", a.wrap(a.postLease))
	mux.Handle("PUT /v1/seed", a.wrap(a.putSeed))
	for pattern, handle := range map[string]handler{
		"PUT /v1/ops/{key}/{n}":        a.putOp,
		"GET /v1/ops/{key}/{n}":        a.getOp,
		"DELETE /v1/ops/{key}/{n}":     a.deleteOp,
		"GET /v1/ops/{key}/{n}/stream": a.streamOp,
		"POST /v1/ack":                 a.postAck,
		"PUT /v1/put":                  a.putTar,
		"POST /v1/get":                 a.getTar,
		"POST /v1/delta":               a.postDelta,
		"POST /v1/freeze":              a.postFreeze,
	} {
		mux.Handle(pattern, a.wrap(a.fenced(handle)))
	}
	mux.Handle("/", a.wrap(func(http.ResponseWriter, *http.Request) error {
		return &apiError{http.StatusNotFound, "bad_request", "no such path or method"}
	}))
	return a.stamped(gate.admit(mux))
}

// stamped puts on every reply, refusals included, who answers.
func (a *agent) stamped(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Tiltyard-Protocol", strconv.Itoa(protocolVersion))
		w.Header().Set("Tiltyard-Boot", a.bootID)
		w.Header()["Date"] = nil
		next.ServeHTTP(w, r)
	})
}

// wrap bounds the body's time, and turns errors and panics into replies without details.
func (a *agent) wrap(handle handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(bodyTimeout))
		var err error
		if failure := guarded(func() { err = handle(w, r) }); failure != nil {
			if failure == http.ErrAbortHandler {
				panic(failure)
			}
			logf("panic: %v\n%s", failure, debug.Stack())
			err = &apiError{http.StatusInternalServerError, "internal", "the agent failed at this request"}
		}
		if err != nil {
			reportError(w, err)
		}
	})
}

func (a *agent) fenced(handle handler) handler {
	return func(w http.ResponseWriter, r *http.Request) error {
		if err := a.alive(); err != nil {
			return err
		}
		epoch, err := strconv.ParseInt(r.Header.Get("Tiltyard-Epoch"), 10, 64)
		if err != nil || epoch < 0 {
			return badRequest("Tiltyard-Epoch must be a decimal")
		}
		if refused := a.registry.fence(r.Header.Get("Tiltyard-Rollout"), epoch); refused != nil {
			return refused
		}
		a.trimmer.begin()
		defer a.trimmer.end()
		return handle(w, r)
	}
}

func (a *agent) alive() error {
	if a.lost {
		return &apiError{http.StatusConflict, "lost_boot", errLostBoot.Error()}
	}
	return nil
}

type errorBody struct {
	Error   string `json:"error"`
	Message string `json:"message"`
	Code    string `json:"code,omitempty"`
}

func reportError(w http.ResponseWriter, err error) {
	var api *apiError
	var failure *Failure
	switch {
	case errors.As(err, &api):
		reply(w, api.status, errorBody{Error: api.code, Message: api.message})
	case errors.As(err, &failure):
		reply(w, http.StatusUnprocessableEntity, errorBody{Error: "refused", Message: failure.Message, Code: failure.Code})
	default:
		logf("request: %v", err)
		reply(w, http.StatusInternalServerError, errorBody{Error: "internal", Message: "the agent failed at this request"})
	}
}

func reply(w http.ResponseWriter, status int, body any) {
	encoded, err := json.Marshal(body)
	if err != nil {
		panic(err)
	}
	send(w, status, encoded)
}

func send(w http.ResponseWriter, status int, parts ...[]byte) {
	size := 0
	for _, part := range parts {
		size += len(part)
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(size))
	w.WriteHeader(status)
	for _, part := range parts {
		if _, err := w.Write(part); err != nil {
			return // the client is gone; the result is kept
		}
	}
}

// body reads at most limit bytes.
func body(w http.ResponseWriter, r *http.Request, limit int64) ([]byte, error) {
	if r.ContentLength > limit {
		return nil, tooLarge(limit)
	}
	data, err := io.ReadAll(http.MaxBytesReader(w, r.Body, limit))
	var over *http.MaxBytesError
	switch {
	case errors.As(err, &over):
		return nil, tooLarge(limit)
	case err != nil:
		return nil, badRequest("the body did not arrive whole")
	}
	return data, nil
}

func tooLarge(limit int64) *apiError {
	return &apiError{http.StatusRequestEntityTooLarge, "too_large", "at most " + strconv.FormatInt(limit, 10) + " bytes"}
}

// object reads a small JSON body by a closed schema.
func object(w http.ResponseWriter, r *http.Request) (*fields, error) {
	raw, err := body(w, r, maxSmallBody)
	if err != nil {
		return nil, err
	}
	f, err := parseObject(raw)
	if err != nil {
		return nil, badRequest("%s", err)
	}
	return f, nil
}

// waitTime reads wait_s, and gives it and a little more to the connection.
func waitTime(r *http.Request) (time.Duration, error) {
	text := r.URL.Query().Get("wait_s")
	if text == "" {
		return 0, nil
	}
	seconds, err := strconv.ParseFloat(text, 64)
	if err != nil || !(seconds >= 0 && seconds <= maxWait.Seconds()) {
		return 0, badRequest("wait_s must be from 0 to %g", maxWait.Seconds())
	}
	return time.Duration(seconds * float64(time.Second)), nil
}

// linger waits until the channel is closed, the time is over or the client is gone.
func linger(ctx context.Context, done <-chan struct{}, wait time.Duration) bool {
	select {
	case <-done:
		return true
	default:
	}
	if wait <= 0 {
		return false
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-done:
		return true
	case <-timer.C:
	case <-ctx.Done():
	}
	return false
}
