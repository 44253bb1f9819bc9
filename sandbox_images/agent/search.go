package main

import (
	"bytes"
	"errors"
	"regexp"
	"strings"
	"syscall"
	"time"
)

const (
	maxSearchFile = 4 << 20
	// searchLimit ends a search of a very large tree; what was found until then is the result, marked as truncated.
	searchLimit = 30 * time.Second
	binaryProbe = 8 << 10
)

type searchMatch struct {
	Path string `json:"path"`
	Line int    `json:"line"`
	Text string `json:"text"`
}

type searchResult struct {
	Type      string        `json:"type"`
	Matches   []searchMatch `json:"matches"`
	Truncated bool          `json:"truncated"`
	Files     int           `json:"files_searched"`
}

// searcher holds one search's state.
type searcher struct {
	op      *searchOp
	pattern *regexp.Regexp
	needle  []byte // every match begins with it; empty: nothing known
	filter  *glob
	where   place
	result  *searchResult
	room    int
	buffer  []byte
	ends    time.Time
}

func (p *paths) search(op *searchOp) (any, error) {
	s, failure := newSearcher(op)
	if failure != nil {
		return nil, failure
	}
	if s.where, failure = p.locate(op.Path, false); failure != nil {
		return nil, failure
	}
	start, err := openStart(s.where)
	if failure := refusal(op.Path, err); err != nil && failure.Code == codeNotADirectory {
		return s.single()
	}
	if err != nil {
		return nil, err
	}
	defer syscall.Close(start)
	w := walker{maxDepth: maxDepth, enter: p.mayEnter(s.where, nil), visit: s.visit, missed: func(found) { s.result.Truncated = true }}
	if err := w.walk(start, "", 1); err != nil && !errors.Is(err, errStop) {
		return nil, err
	}
	return s.result, nil
}

func newSearcher(op *searchOp) (*searcher, *Failure) {
	if len(op.Pattern) > maxPatternBytes {
		return nil, badPattern("a pattern is at most 4096 bytes")
	}
	expression := op.Pattern
	if op.IgnoreCase {
		expression = "(?i)" + expression
	}
	compiled, err := regexp.Compile(expression)
	if err != nil {
		return nil, badPattern(err.Error())
	}
	s := &searcher{op: op, pattern: compiled, room: maxResultText, ends: time.Now().Add(searchLimit)}
	prefix, _ := compiled.LiteralPrefix()
	s.needle = []byte(prefix)
	s.result = &searchResult{Type: "search", Matches: []searchMatch{}}
	if op.Glob != nil {
		filter, failure := parseGlobPattern(*op.Glob)
		if failure != nil {
			return nil, failure
		}
		s.filter = filter
	}
	return s, nil
}

// single searches the one file that the path names.
func (s *searcher) single() (any, error) {
	parent, name, err := openParent(s.where, false)
	if err != nil {
		return nil, err
	}
	defer syscall.Close(parent)
	if _, err := lookAtTarget(parent, name); err != nil {
		return nil, err
	}
	if err := s.file(parent, name, s.where.prefixed("")); err != nil && !errors.Is(err, errStop) {
		return nil, err
	}
	return s.result, nil
}

func (s *searcher) visit(f found) error {
	if f.kind != dtRegular || !s.wanted(f) {
		return nil
	}
	text, ok := printable(s.where.prefixed(f.path))
	if !ok {
		return nil
	}
	if time.Now().After(s.ends) {
		s.result.Truncated = true
		return errStop
	}
	return s.file(f.dir, f.name, text)
}

// wanted applies the glob: one without a slash is for the file's own name, wherever it lies.
func (s *searcher) wanted(f found) bool {
	if s.filter == nil {
		return true
	}
	if !strings.Contains(*s.op.Glob, "/") {
		return s.filter.matchPath(f.name)
	}
	return s.filter.matchPath(f.path)
}

func (s *searcher) file(dir int, name, path string) error {
	fd, stat, err := openRegular(dir, name)
	if err != nil {
		return nil // gone, or closed to us
	}
	defer syscall.Close(fd)
	if stat.Size > maxSearchFile {
		return nil
	}
	if int64(cap(s.buffer)) < stat.Size {
		s.buffer = make([]byte, max(stat.Size, 64<<10))
	}
	count, err := readFull(fd, s.buffer[:stat.Size], 0)
	if err != nil {
		return nil
	}
	data := s.buffer[:count]
	if bytes.IndexByte(data[:min(count, binaryProbe)], 0) >= 0 {
		return nil
	}
	s.result.Files++
	if !bytes.Contains(data, s.needle) {
		return nil
	}
	return s.lines(data, path)
}

func (s *searcher) lines(data []byte, path string) error {
	for number := 1; len(data) > 0; number++ {
		line, rest, _ := bytes.Cut(data, []byte("\n"))
		data = rest
		line = bytes.TrimSuffix(line, []byte("\r"))
		if !bytes.Contains(line, s.needle) || !s.pattern.Match(line) {
			continue
		}
		if len(line) > s.op.LineLimit {
			line = trimEnd(line[:s.op.LineLimit])
		}
		text := strings.ToValidUTF8(string(line), "\uFFFD")
		if s.room -= len(path) + len(text) + 32; len(s.result.Matches) >= s.op.Limit || s.room < 0 {
			s.result.Truncated = true
			return errStop
		}
		s.result.Matches = append(s.result.Matches, searchMatch{Path: path, Line: number, Text: text})
	}
	return nil
}
