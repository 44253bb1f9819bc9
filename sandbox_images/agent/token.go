package main

import (
	"crypto/ed25519"
	"encoding/base64"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	maxTokenBytes = 1024
	// tokenAhead bounds how long a token may be good for: one that leaked is soon worth nothing.
	tokenAhead  = 15 * time.Minute
	tokenSkew   = 30 * time.Second
	tokensKept  = 16
	tokenHeader = "Tiltyard-Token"
)

// token is what a host signed: for one box, under one epoch, for a while.
type token struct {
	epoch   int64
	expires time.Time
}

// gatekeeper checks tokens where callers come over a network. Nil: callers are trusted by their transport.
type gatekeeper struct {
	box string
	key ed25519.PublicKey

	mu    sync.Mutex
	known map[string]token
}

func newGatekeeper(config *Config) *gatekeeper {
	if config.Listen == "" {
		return nil
	}
	return &gatekeeper{box: config.Box, key: config.PublicKey, known: map[string]token{}}
}

var errBadToken = &apiError{http.StatusUnauthorized, "bad_token", "no valid token for this box"}

// check refuses a request without a token that is good now; of which epoch it is comes back.
func (g *gatekeeper) check(r *http.Request) (int64, error) {
	text := r.Header.Get(tokenHeader)
	found, known := g.remembered(text)
	if !known {
		var good bool
		if found, good = g.parse(text); !good {
			return 0, errBadToken
		}
		g.remember(text, found)
	}
	now := time.Now()
	if now.After(found.expires.Add(tokenSkew)) || found.expires.After(now.Add(tokenAhead)) {
		return 0, errBadToken
	}
	return found.epoch, nil
}

func (g *gatekeeper) remembered(text string) (token, bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	found, known := g.known[text]
	return found, known
}

// remember keeps a few that were checked: a host sends the same one for minutes.
func (g *gatekeeper) remember(text string, checked token) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.known) >= tokensKept {
		clear(g.known)
	}
	g.known[text] = checked
}

// parse checks the signature and whose box it is for, before anything in it is read.
func (g *gatekeeper) parse(text string) (token, bool) {
	payload, signed, found := strings.Cut(text, ".")
	if !found || len(text) > maxTokenBytes {
		return token{}, false
	}
	signature, err := base64.RawURLEncoding.DecodeString(signed)
	if err != nil || !ed25519.Verify(g.key, []byte(payload), signature) {
		return token{}, false
	}
	raw, err := base64.RawURLEncoding.DecodeString(payload)
	if err != nil {
		return token{}, false
	}
	f, err := parseObject(raw)
	if err != nil {
		return token{}, false
	}
	box, epoch, expires := f.required("box"), f.integer("epoch", -1, 0, 1<<53), f.integer("exp", -1, 0, 1<<53)
	if f.finish() != nil || box != g.box || epoch < 0 || expires < 0 {
		return token{}, false
	}
	return token{epoch: epoch, expires: time.Unix(expires, 0)}, true
}

// admit wraps every handler where tokens are asked for. A fenced request's token is of the epoch that it claims; a lease's is
// looked at when its body is known.
func (g *gatekeeper) admit(next http.Handler) http.Handler {
	if g == nil {
		return next
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		epoch, err := g.check(r)
		if claimed := r.Header.Get("Tiltyard-Epoch"); err == nil && claimed != "" && claimed != strconv.FormatInt(epoch, 10) {
			err = errBadToken
		}
		if err != nil {
			// The server reads on what is left of a body, to keep the connection: not for ever.
			_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(refusedTimeout))
			w.Header().Set("Connection", "close")
			reportError(w, err)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// granted tells whether the request's token is of this epoch.
func (g *gatekeeper) granted(r *http.Request, epoch int64) bool {
	if g == nil {
		return true
	}
	signed, err := g.check(r)
	return err == nil && signed == epoch
}
