package main

import (
	"errors"
	"strings"
	"syscall"
	"unicode/utf8"
)

const maxGlobParts = 63 // positions are the bits of a word

// glob is a parsed pattern: parts between slashes, nil for **. Matching keeps a set of positions instead of backtracking over
// folders, so no pattern is costly.
type glob struct{ parts [][]globItem }

// globItem matches one character (a class or a literal) or, as star, any run of them.
type globItem struct {
	star    bool
	negated bool
	ranges  []runeRange
}

type runeRange struct{ low, high rune }

func badPattern(text string) *Failure { return refuse(codeBadPattern, text) }

func parseGlobPattern(pattern string) (*glob, *Failure) {
	if pattern == "" || len(pattern) > maxPatternBytes || !utf8.ValidString(pattern) || strings.ContainsRune(pattern, 0) {
		return nil, badPattern("a glob pattern is 1 to 4096 bytes of UTF-8 without NUL")
	}
	if pattern[0] == '/' {
		return nil, badPattern("a glob pattern is relative; put the folder into path")
	}
	g := &glob{}
	for _, part := range strings.Split(pattern, "/") {
		switch part {
		case "", ".":
			continue
		case "..":
			return nil, badPattern(".. is not allowed in a glob pattern")
		case "**":
			if last := len(g.parts) - 1; last < 0 || g.parts[last] != nil {
				g.parts = append(g.parts, nil)
			}
			continue
		}
		items, failure := parseGlobPart(part)
		if failure != nil {
			return nil, failure
		}
		g.parts = append(g.parts, items)
	}
	if len(g.parts) > maxGlobParts || len(g.parts) == 0 {
		return nil, badPattern("a glob pattern has 1 to 63 parts")
	}
	return g, nil
}

func parseGlobPart(part string) (items []globItem, failure *Failure) {
	for rest := part; rest != ""; {
		r, size := utf8.DecodeRuneInString(rest)
		rest = rest[size:]
		switch r {
		case '*':
			if len(items) == 0 || !items[len(items)-1].star {
				items = append(items, globItem{star: true})
			}
		case '?':
			items = append(items, globItem{negated: true})
		case '[':
			var class globItem
			if class, rest, failure = parseClass(rest); failure != nil {
				return nil, failure
			}
			items = append(items, class)
		default:
			items = append(items, globItem{ranges: []runeRange{{r, r}}})
		}
	}
	return items, nil
}

// parseClass reads what follows "[": "!" or "^" negates, "]" first is itself, a-z is a range.
func parseClass(rest string) (globItem, string, *Failure) {
	var class globItem
	if strings.HasPrefix(rest, "!") || strings.HasPrefix(rest, "^") {
		class.negated, rest = true, rest[1:]
	}
	for first := true; ; first = false {
		r, size := utf8.DecodeRuneInString(rest)
		if size == 0 {
			return class, rest, badPattern("a [ in the glob pattern is not closed")
		}
		rest = rest[size:]
		if r == ']' && !first {
			return class, rest, nil
		}
		high := r
		if after, is := strings.CutPrefix(rest, "-"); is && after != "" && after[0] != ']' {
			high, size = utf8.DecodeRuneInString(after)
			rest = after[size:]
		}
		if high < r {
			return class, rest, badPattern("a range in the glob pattern runs backwards")
		}
		class.ranges = append(class.ranges, runeRange{r, high})
	}
}

func (i globItem) matches(r rune) bool {
	for _, each := range i.ranges {
		if r >= each.low && r <= each.high {
			return !i.negated
		}
	}
	return i.negated
}

// matchPart is the usual two-pointer match: it goes back to the last star only.
func matchPart(items []globItem, name string) bool {
	at, star, resume := 0, -1, 0
	for offset := 0; offset < len(name); {
		r, size := utf8.DecodeRuneInString(name[offset:])
		switch {
		case at < len(items) && items[at].star:
			star, resume = at, offset
			at++
		case at < len(items) && items[at].matches(r):
			at++
			offset += size
		case star >= 0:
			_, skip := utf8.DecodeRuneInString(name[resume:])
			resume += skip
			at, offset = star+1, resume
		default:
			return false
		}
	}
	for at < len(items) && items[at].star {
		at++
	}
	return at == len(items)
}

// globState is the set of positions in the pattern that a path may have reached: bit i says that parts before i are used up.
type globState uint64

// begin holds position 0 and, over leading **, what follows.
func (g *glob) begin() globState { return g.close(1) }

func (g *glob) close(state globState) globState {
	for i, part := range g.parts {
		if part == nil && state>>i&1 == 1 {
			state |= 1 << (i + 1)
		}
	}
	return state
}

func (g *glob) advance(state globState, name string) (next globState) {
	for i, part := range g.parts {
		if state>>i&1 == 0 {
			continue
		}
		if part == nil {
			next |= 1 << i
		} else if matchPart(part, name) {
			next |= 1 << (i + 1)
		}
	}
	return g.close(next)
}

func (g *glob) accepts(state globState) bool { return state>>len(g.parts)&1 == 1 }

// after runs a whole path.
func (g *glob) after(path string) globState {
	state := g.begin()
	for _, name := range strings.Split(path, "/") {
		state = g.advance(state, name)
	}
	return state
}

func (g *glob) matchPath(path string) bool { return g.accepts(g.after(path)) }

type globResult struct {
	Type      string   `json:"type"`
	Paths     []string `json:"paths"`
	Truncated bool     `json:"truncated"`
}

func (p *paths) glob(op *globOp) (any, error) {
	pattern, failure := parseGlobPattern(op.Pattern)
	if failure != nil {
		return nil, failure
	}
	where, failure := p.locate(op.Path, false)
	if failure != nil {
		return nil, failure
	}
	start, err := openStart(where)
	if err != nil {
		return nil, err
	}
	defer syscall.Close(start)
	result, room := &globResult{Type: "glob", Paths: []string{}}, maxResultText
	w := walker{maxDepth: maxDepth, missed: func(found) { result.Truncated = true }}
	w.enter = p.mayEnter(where, func(f found) bool { return pattern.after(f.path) != 0 })
	w.visit = func(f found) error {
		if f.kind != dtRegular || !pattern.matchPath(f.path) {
			return nil
		}
		text, ok := printable(where.prefixed(f.path))
		if !ok {
			return nil // no text names it
		}
		if room -= len(text) + 8; len(result.Paths) >= op.Limit || room < 0 {
			result.Truncated = true
			return errStop
		}
		result.Paths = append(result.Paths, text)
		return nil
	}
	if err := w.walk(start, "", 1); err != nil && !errors.Is(err, errStop) {
		return nil, err
	}
	return result, nil
}
