package main

import (
	"crypto/ed25519"
	"encoding/base64"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

var signingKey = ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))

func gateOf(box string) *gatekeeper {
	return newGatekeeper(&Config{Listen: "x", Box: box, PublicKey: signingKey.Public().(ed25519.PublicKey)})
}

func signToken(claims string) string {
	payload := base64.RawURLEncoding.EncodeToString([]byte(claims))
	return payload + "." + base64.RawURLEncoding.EncodeToString(ed25519.Sign(signingKey, []byte(payload)))
}

func claimsFor(box string, epoch int, ahead time.Duration) string {
	return fmt.Sprintf(`{"box":%q,"epoch":%d,"exp":%d}`, box, epoch, time.Now().Add(ahead).Unix())
}

func carrying(text, epoch string) *http.Request {
	r := httptest.NewRequest("GET", "/v1/health", nil)
	r.Header.Set(tokenHeader, text)
	if epoch != "" {
		r.Header.Set("Tiltyard-Epoch", epoch)
	}
	return r
}

func TestTokens(t *testing.T) {
	good := claimsFor("b", 3, time.Minute)
	payload, signature, _ := strings.Cut(signToken(good), ".")
	for name, c := range map[string]struct {
		token, epoch string
		status       int
	}{
		"good":                {signToken(good), "3", 200},
		"of no epoch":         {signToken(good), "", 200},
		"a little late":       {signToken(claimsFor("b", 3, -20*time.Second)), "3", 200},
		"late":                {signToken(claimsFor("b", 3, -40*time.Second)), "3", 401},
		"almost too far off":  {signToken(claimsFor("b", 3, 890*time.Second)), "3", 200},
		"too far off":         {signToken(claimsFor("b", 3, 910*time.Second)), "3", 401},
		"another epoch":       {signToken(good), "4", 401},
		"the same, spelled":   {signToken(good), "+3", 401},
		"another box":         {signToken(claimsFor("c", 3, time.Minute)), "3", 401},
		"no box":              {signToken(`{"epoch":3,"exp":9999999999}`), "3", 401},
		"no epoch in it":      {signToken(fmt.Sprintf(`{"box":"b","exp":%d}`, time.Now().Unix()+60)), "-1", 401},
		"one field more":      {signToken(strings.Replace(good, "{", `{"x":1,`, 1)), "3", 401},
		"no JSON":             {signToken("x"), "3", 401},
		"signature of other":  {payload + "x." + signature, "3", 401},
		"signature cut":       {payload + "." + signature[:40], "3", 401},
		"padded":              {payload + "." + signature + "=", "3", 401},
		"three parts":         {payload + "." + signature + ".x", "3", 401},
		"long":                {signToken(claimsFor("b"+strings.Repeat(" ", 2000), 3, time.Minute)), "3", 401},
		"nothing":             {"", "", 401},
		"only a dot":          {".", "", 401},
		"signature of no one": {payload + "." + base64.RawURLEncoding.EncodeToString(make([]byte, 64)), "3", 401},
	} {
		gate, served := gateOf("b"), 0
		handler := gate.admit(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { served++ }))
		for range 2 { // the second time it may be remembered
			w := httptest.NewRecorder()
			handler.ServeHTTP(w, carrying(c.token, c.epoch))
			if w.Code != c.status {
				t.Errorf("%s: %d", name, w.Code)
			}
			if c.status == 401 && w.Body.String() != `{"error":"bad_token","message":"no valid token for this box"}` {
				t.Errorf("%s: it tells %s", name, w.Body)
			}
		}
		if served != 0 && c.status != 200 || served != 2 && c.status == 200 {
			t.Errorf("%s: served %d times", name, served)
		}
	}
}

func TestARememberedTokenStillExpires(t *testing.T) {
	gate, text := gateOf("b"), signToken(claimsFor("b", 3, time.Minute))
	if _, err := gate.check(carrying(text, "")); err != nil {
		t.Fatal(err)
	}
	kept := gate.known[text]
	kept.expires = time.Now().Add(-time.Minute)
	gate.known[text] = kept
	if _, err := gate.check(carrying(text, "")); err == nil {
		t.Fatal("an old token is taken because it was good once")
	}
}

func TestFewTokensAreRememberedAndNoBadOnes(t *testing.T) {
	gate := gateOf("b")
	for epoch := range 100 {
		_, _ = gate.check(carrying(signToken(claimsFor("b", epoch, time.Minute)), ""))
	}
	if len(gate.known) == 0 || len(gate.known) > tokensKept {
		t.Fatalf("%d are kept", len(gate.known))
	}
	before := len(gate.known)
	for epoch := range 100 {
		_, _ = gate.check(carrying(signToken(claimsFor("c", epoch, time.Minute)), ""))
	}
	if len(gate.known) != before {
		t.Fatal("another box's are kept")
	}
}

func FuzzNobodyMakesAToken(f *testing.F) {
	f.Add(signToken(claimsFor("c", 1, time.Minute)))
	f.Add("a.b")
	gate := gateOf("b")
	f.Fuzz(func(t *testing.T, text string) {
		if _, good := gate.parse(text); good {
			t.Fatalf("%q is taken", text)
		}
	})
}

// pipeConn is a connection between two given addresses.
type pipeConn struct {
	net.Conn
	near, far net.Addr
	closed    chan struct{}
}

func (c *pipeConn) LocalAddr() net.Addr  { return c.near }
func (c *pipeConn) RemoteAddr() net.Addr { return c.far }
func (c *pipeConn) Close() error         { close(c.closed); return nil }

type queue chan net.Conn

func (q queue) Accept() (net.Conn, error) {
	if conn, open := <-q; open {
		return conn, nil
	}
	return nil, net.ErrClosed
}
func (queue) Close() error   { return nil }
func (queue) Addr() net.Addr { return nil }

func connOf(near, far string) *pipeConn {
	address := func(ip string) net.Addr { return &net.TCPAddr{IP: net.ParseIP(ip), Port: 1} }
	return &pipeConn{near: address(near), far: address(far), closed: make(chan struct{})}
}

func TestWhoCallsFromInsideTheBox(t *testing.T) {
	for _, c := range []struct {
		near, far string
		here      bool
	}{
		{"10.1.0.5", "10.1.0.9", false}, {"10.1.0.5", "10.1.0.5", true}, {"127.0.0.1", "127.0.0.1", true},
		{"10.1.0.5", "127.0.0.1", true}, {"10.1.0.5", "127.8.8.8", true}, {"::1", "::1", true},
		{"::ffff:10.1.0.5", "10.1.0.5", true}, {"::ffff:10.1.0.5", "::ffff:127.0.0.1", true},
		{"fd00::5", "fd00::5", true}, {"fd00::5", "fd00::6", false},
	} {
		if here := fromHere(connOf(c.near, c.far)); here != c.here {
			t.Errorf("%s to %s: %v", c.far, c.near, here)
		}
	}
}

func TestTheBoxItselfIsTurnedAwayAndTakesNoPlace(t *testing.T) {
	calls := make(queue, 10_000)
	inside := []*pipeConn{}
	for range 1000 {
		inside = append(inside, connOf("10.1.0.5", "10.1.0.5"))
		calls <- inside[len(inside)-1]
	}
	host := connOf("10.1.0.5", "10.1.0.9")
	calls <- host
	l := &limited{Listener: &networked{Listener: calls}, slots: make(chan struct{}, maxConnections)}
	conn, err := l.Accept()
	if err != nil || conn.RemoteAddr() != host.far {
		t.Fatal("it is not the host that is heard")
	}
	for _, one := range inside {
		<-one.closed
	}
	if len(l.slots) != 1 {
		t.Fatalf("%d places are taken", len(l.slots))
	}
}

func TestWhereTheBoxIsHeardItHoldsAFewPlaces(t *testing.T) {
	calls := make(queue, 10_000)
	for range 300 {
		calls <- connOf("127.0.0.1", "127.0.0.1")
	}
	calls <- connOf("10.1.0.5", "10.1.0.9")
	n := &networked{Listener: calls, local: make(chan struct{}, maxLocal)}
	l := &limited{Listener: n, slots: make(chan struct{}, maxConnections)}
	local := []net.Conn{}
	for range maxLocal {
		conn, err := l.Accept()
		if err != nil || !fromHere(connOf("127.0.0.1", conn.RemoteAddr().(*net.TCPAddr).IP.String())) {
			t.Fatal("the first are taken")
		}
		local = append(local, conn)
	}
	if conn, err := l.Accept(); err != nil || conn.RemoteAddr().(*net.TCPAddr).IP.IsLoopback() {
		t.Fatal("the others are not turned away")
	}
	if len(n.local) != maxLocal || len(l.slots) != maxLocal+1 {
		t.Fatalf("%d and %d places", len(n.local), len(l.slots))
	}
	for _, conn := range local {
		_ = conn.Close()
	}
	if len(n.local) != 0 || len(l.slots) != 1 {
		t.Fatal("places are not given back")
	}
}

func TestConfigurationOfANetwork(t *testing.T) {
	key := `"public_key_b64":"` + base64.StdEncoding.EncodeToString(make([]byte, 32)) + `"`
	for text, good := range map[string]bool{
		`{"mode":"one_uid"}`: true,
		`{"mode":"one_uid","rlimits":{"nofile":9,"nproc":0}}`:                              true,
		`{"mode":"one_uid","listen":"0.0.0.0:1","box":"b",` + key + `}`:                    true,
		`{"mode":"one_uid","listen":"0.0.0.0:1",` + key + `}`:                              false,
		`{"mode":"one_uid","listen":"0.0.0.0:1","box":"b"}`:                                false,
		`{"mode":"one_uid","listen":"0.0.0.0:1","box":"b","public_key_b64":"AAAA"}`:        false,
		`{"mode":"one_uid","box":"b"}`:                                                     false,
		`{"mode":"one_uid",` + key + `}`:                                                   false,
		`{"mode":"one_uid","allow_loopback":true}`:                                         false,
		`{"mode":"one_uid","rlimits":{"core":1}}`:                                          false,
		`{"mode":"one_uid","rlimits":{"nofile":-1}}`:                                       false,
		`{"mode":"one_uid","rlimits":[]}`:                                                  false,
		`{"mode":"one_uid","rlimits":{"nofile":"many"}}`:                                   false,
		`{"mode":"one_uid","listen":"0.0.0.0:1","box":"b",` + key + `,"host":"elsewhere"}`: false,
	} {
		if _, err := parseConfig([]byte(text)); (err == nil) != good {
			t.Errorf("%s: %v", text, err)
		}
	}
}

func TestABoxIsSeededBeforeItIsLeased(t *testing.T) {
	j, err := openJournal(t.TempDir(), 4<<20)
	if err != nil {
		t.Fatal(err)
	}
	r := newRegistry(j)
	if refused := r.beginSeed(); refused != nil {
		t.Fatal(refused)
	}
	if _, refused := r.lease("a", 1); refused == nil || refused.code != "busy" {
		t.Fatalf("while it is seeded: %v", refused)
	}
	r.endSeed()
	if _, refused := r.lease("a", 1); refused != nil {
		t.Fatal(refused)
	}
	if refused := r.beginSeed(); refused == nil || refused.code != "leased" {
		t.Fatalf("once it is leased: %v", refused)
	}
}
