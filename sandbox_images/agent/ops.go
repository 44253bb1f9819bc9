package main

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
)

const (
	maxPathBytes    = 4096
	maxReadBytes    = 1 << 20
	maxOutputBytes  = 512 << 10 // per stream: two of them, base64, stay below the 1.5 MiB of a result
	maxTimeout      = 86400.0
	maxListEntries  = 10_000
	maxPatternBytes = 4096
	maxSessionName  = 32
)

// operation is one of the closed set below. Its JSON (names in declaration order) is what a replay is compared with, so what
// may differ between two requests for the same operation is left out of it.
type operation interface{ kind() string }

type execOp struct {
	Argv        []string
	Cwd         string
	Env         map[string]string
	Stdin       []byte
	Timeout     float64 `json:"-"`
	OutputLimit int
	Merge       bool
	Principal   int
	Trusted     bool
	Events      bool
}

type sessionOp struct {
	Name          string
	Script        string
	TTY           bool
	Rows, Columns int
	Timeout       float64 `json:"-"`
	OutputLimit   int
}

type readOp struct {
	Path          string
	Offset, Limit int64
}

type writeOp struct {
	Path     string
	Data     []byte
	Mode     *int64
	Parents  bool
	Expected *string
}

type editOp struct {
	Path, Old, New string
	Expected       *int64
}

type listOp struct {
	Path         string
	Depth, Limit int
}

type globOp struct {
	Pattern, Path string
	Limit         int
}

type searchOp struct {
	Pattern, Path    string
	Glob             *string
	IgnoreCase       bool
	Limit, LineLimit int
}

type noteOp struct {
	Data []byte `json:"-"`
}

// refusedOp is an operation whose text has no UTF-8 form: the answer is known before it runs.
type refusedOp struct{ Kind, Reason string }

func (*execOp) kind() string      { return "exec" }
func (*sessionOp) kind() string   { return "session" }
func (*readOp) kind() string      { return "read" }
func (*writeOp) kind() string     { return "write" }
func (*editOp) kind() string      { return "edit" }
func (*listOp) kind() string      { return "list" }
func (*globOp) kind() string      { return "glob" }
func (*searchOp) kind() string    { return "search" }
func (*noteOp) kind() string      { return "note" }
func (o *refusedOp) kind() string { return o.Kind }

type digest [sha256.Size]byte

// fingerprint tells whether a second body under an id is the same operation.
func fingerprint(op operation) digest {
	hash := sha256.New()
	_, _ = hash.Write([]byte(op.kind() + "\n"))
	if err := json.NewEncoder(hash).Encode(op); err != nil {
		panic(err) // plain structs always encode
	}
	return digest(hash.Sum(nil))
}

// header is what the first operation of a call carries.
type header struct {
	Key       string          `json:"key"`
	Sequence  int64           `json:"sequence"`
	Tool      string          `json:"tool"`
	Arguments json.RawMessage `json:"arguments"`
}

// parseRequest reads the body of PUT /v1/ops. Its errors are the caller's (400).
func parseRequest(raw []byte) (operation, *header, error) {
	body, err := parseObject(raw)
	if err != nil {
		return nil, nil, err
	}
	rawOp := body.need("op")
	rawCall, hasCall := body.take("call")
	if err := body.finish(); err != nil {
		return nil, nil, err
	}
	op, err := parseOperation(rawOp)
	if err != nil {
		return nil, nil, fmt.Errorf("op: %w", err)
	}
	if !hasCall {
		return op, nil, nil
	}
	call, err := parseHeader(rawCall)
	if err != nil {
		return nil, nil, fmt.Errorf("call: %w", err)
	}
	return op, call, nil
}

func parseHeader(raw []byte) (*header, error) {
	f, err := parseObject(raw)
	if err != nil {
		return nil, err
	}
	call := &header{
		Key:       f.required("key"),
		Sequence:  f.integer("sequence", 0, 0, 1<<53),
		Tool:      f.required("tool"),
		Arguments: f.need("arguments"),
	}
	if !json.Valid(call.Arguments) || call.Arguments[0] != '{' {
		f.fail("arguments", "an object")
	}
	if len(call.Tool) > 256 {
		f.fail("tool", "at most 256 bytes")
	}
	return call, f.finish()
}

func parseOperation(raw []byte) (operation, error) {
	f, err := parseObject(raw)
	if err != nil {
		return nil, err
	}
	kind := f.required("type")
	parse, known := map[string]func(*fields) operation{
		"exec": parseExec, "session": parseSession, "read": parseRead, "write": parseWrite, "edit": parseEdit, "list": parseList,
		"glob": parseGlob, "search": parseSearch, "note": parseNote,
	}[kind]
	if !known {
		return nil, fmt.Errorf("unknown type %.64q", kind)
	}
	op := parse(f)
	if err := f.finish(); err != nil {
		return nil, err
	}
	if f.halves {
		return &refusedOp{Kind: kind, Reason: errSurrogate.Error()}, nil
	}
	return op, nil
}

func parseExec(f *fields) operation {
	op := &execOp{
		Argv:        f.list("argv", 1, 65536),
		Cwd:         f.text("cwd", "."),
		Env:         f.table("env"),
		Stdin:       f.blob("stdin_b64", false),
		Timeout:     f.seconds("timeout_s", maxTimeout),
		OutputLimit: int(f.integer("output_limit_bytes", 65536, 0, maxOutputBytes)),
		Merge:       f.flag("merge_stderr", true),
		Events:      f.flag("events", false),
	}
	if string(f.raw["principal"]) == `"trusted"` {
		op.Trusted = true
		delete(f.raw, "principal")
	} else {
		op.Principal = int(f.integer("principal", 0, 0, 65535))
	}
	return op
}

func parseSession(f *fields) operation {
	op := &sessionOp{
		Name:        f.required("name"),
		Script:      f.required("script"),
		TTY:         f.flag("tty", false),
		Rows:        int(f.integer("rows", 24, 1, 1000)),
		Columns:     int(f.integer("columns", 80, 1, 1000)),
		Timeout:     f.seconds("timeout_s", maxTimeout),
		OutputLimit: int(f.integer("output_limit_bytes", 65536, 0, maxOutputBytes)),
	}
	if len(op.Name) > maxSessionName || !isWord(op.Name) {
		f.fail("name", "1 to 32 of 0-9a-zA-Z_-")
	}
	return op
}

// hasNul finds what no system call could be given.
func (o *execOp) hasNul() bool {
	for name, value := range o.Env {
		if strings.ContainsRune(name+value, 0) {
			return true
		}
	}
	return strings.ContainsRune(strings.Join(o.Argv, "")+o.Cwd, 0)
}

func parseRead(f *fields) operation {
	return &readOp{
		Path:   f.required("path"),
		Offset: f.integer("offset_bytes", 0, 0, 1<<62),
		Limit:  f.integer("limit_bytes", maxReadBytes, 0, maxReadBytes),
	}
}

func parseWrite(f *fields) operation {
	op := &writeOp{
		Path:     f.required("path"),
		Data:     f.blob("data_b64", true),
		Mode:     f.maybeInteger("mode", 0, 0o777),
		Parents:  f.flag("parents", true),
		Expected: f.maybe("expected_sha256"),
	}
	if op.Expected != nil && *op.Expected != "absent" && !isHash(*op.Expected) {
		f.fail("expected_sha256", `64 lower-case hex digits or "absent"`)
	}
	return op
}

func isHash(text string) bool {
	return len(text) == 64 && strings.Trim(text, "0123456789abcdef") == ""
}

func parseEdit(f *fields) operation {
	op := &editOp{Path: f.required("path"), Old: f.required("old"), New: f.required("new"), Expected: new(int64)}
	*op.Expected = 1
	if _, present := f.raw["expected_count"]; present {
		op.Expected = f.maybeInteger("expected_count", 1, 1<<31)
	}
	return op
}

func parseList(f *fields) operation {
	return &listOp{
		Path:  f.text("path", "."),
		Depth: int(f.integer("depth", 1, 1, maxDepth)),
		Limit: int(f.integer("limit", 1000, 1, maxListEntries)),
	}
}

func parseGlob(f *fields) operation {
	return &globOp{
		Pattern: f.required("pattern"),
		Path:    f.text("path", "."),
		Limit:   int(f.integer("limit", 1000, 1, maxListEntries)),
	}
}

func parseSearch(f *fields) operation {
	return &searchOp{
		Pattern:    f.required("pattern"),
		Path:       f.text("path", "."),
		Glob:       f.maybe("glob"),
		IgnoreCase: f.flag("ignore_case", false),
		Limit:      int(f.integer("limit", 200, 1, maxListEntries)),
		LineLimit:  int(f.integer("line_limit_bytes", 400, 1, 65536)),
	}
}

func parseNote(f *fields) operation {
	op := &noteOp{Data: f.blob("data_b64", true)}
	if len(op.Data) > maxReadBytes {
		f.fail("data_b64", "at most 1 MiB")
	}
	return op
}

var errBadID = errors.New("operations are named {call_key}/{n}: 1 to 64 of 0-9a-zA-Z_- and a decimal from 0")

// isWord tells whether the text is of 0-9a-zA-Z_- and not empty.
func isWord(text string) bool {
	for _, r := range text {
		if !strings.ContainsRune("0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_-", r) {
			return false
		}
	}
	return text != ""
}

// parseID splits the path's last two parts.
func parseID(key, number string) (int, error) {
	if len(key) == 0 || len(key) > 64 || len(number) == 0 || len(number) > 6 {
		return 0, errBadID
	}
	if !isWord(key) {
		return 0, errBadID
	}
	n := 0
	for _, r := range number {
		if r < '0' || r > '9' {
			return 0, errBadID
		}
		n = 10*n + int(r-'0')
	}
	if len(number) > 1 && number[0] == '0' {
		return 0, errBadID
	}
	return n, nil
}
