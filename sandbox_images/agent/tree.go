package main

import (
	"cmp"
	"errors"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"unicode/utf8"
)

const (
	// maxDepth bounds how deep a walk goes: one descriptor a level.
	maxDepth = 128
	// maxFolder bounds the names of one folder that are held in memory.
	maxFolder = 200_000
	// maxResultText bounds the text of paths and lines in one result (1.5 MiB as JSON at the most).
	maxResultText = 768 << 10
)

// errStop ends a walk early.
var errStop = errors.New("stop")

// found is one thing met on a walk. `dir` is the open folder that holds it.
type found struct {
	dir   int
	name  string
	path  string // below the walk's start
	kind  byte   // dt*, never dtUnknown
	depth int    // 1: directly in the start
}

// walker goes through a tree in the order of the bytes of its paths.
type walker struct {
	maxDepth int
	// enter tells whether to go into a folder; nil goes into all but .git.
	enter func(found) bool
	visit func(found) error
	// missed is told of a folder that could not be read whole: too deep, too many names, closed to us.
	missed func(found)
	// unlock goes into folders that their owner, who we are, closed to itself.
	unlock bool
}

// walk visits everything below the open folder. Only errStop and errors of visit end it.
func (w *walker) walk(dir int, prefix string, depth int) error {
	entries, whole := readFolder(dir)
	if !whole && w.missed != nil {
		w.missed(found{dir: dir, path: cmp.Or(prefix, "."), kind: dtDir, depth: depth - 1})
	}
	for _, e := range inPathOrder(entries) {
		f := found{dir: dir, name: e.name, path: join(prefix, e.name), kind: e.kind, depth: depth}
		var err error
		if e.contents {
			err = w.descend(f)
		} else {
			err = w.visit(f)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (w *walker) descend(f found) error {
	if w.enter == nil && f.name == ".git" || w.enter != nil && !w.enter(f) {
		return nil
	}
	if f.depth >= w.maxDepth {
		if w.missed != nil {
			w.missed(f)
		}
		return nil
	}
	sub, err := openFolder(f.dir, f.name)
	if err == syscall.EACCES && w.unlock {
		sub, err = unlockFolder(f.dir, f.name)
	}
	if err != nil {
		if w.missed != nil && err != syscall.ENOENT {
			w.missed(f)
		}
		return nil
	}
	defer syscall.Close(sub)
	return w.walk(sub, f.path, f.depth+1)
}

// openFolder opens one component for listing, never through a symlink.
func openFolder(dir int, name string) (int, error) {
	fd, err := step(dir, name, false)
	if err != nil {
		return -1, err
	}
	defer syscall.Close(fd)
	return openListing(fd)
}

// unlockFolder gives the owner its rights back for good: nothing else runs when a delta is taken.
func unlockFolder(dir int, name string) (int, error) {
	fd, err := step(dir, name, false)
	if err != nil {
		return -1, err
	}
	defer syscall.Close(fd)
	return reopenUnlocked(fd)
}

func reopenUnlocked(folder int) (int, error) {
	if err := chmodOpen(folder, 0o700); err != nil {
		return -1, err
	}
	return openListing(folder)
}

// chmodOpen changes what an O_PATH descriptor stands for, whatever its name leads to by now.
func chmodOpen(fd int, mode uint32) error {
	return again(func() error { return syscall.Chmod("/proc/self/fd/"+strconv.Itoa(fd), mode) })
}

func join(prefix, name string) string {
	if prefix == "" || name == "" {
		return prefix + name
	}
	return prefix + "/" + name
}

type folderEntry struct {
	name string
	kind byte
	// contents marks the second entry of a folder: what is in it comes where name + "/" sorts.
	contents bool
}

// readFolder lists an open folder; whole is false where it could not be read to its end.
func readFolder(dir int) (entries []folderEntry, whole bool) {
	err := eachEntry(dir, func(name string, kind byte) error {
		if len(entries) >= maxFolder {
			return errStop
		}
		if kind == dtUnknown {
			kind = lookKind(dir, name)
		}
		entries = append(entries, folderEntry{name: name, kind: kind})
		return nil
	})
	return entries, err == nil
}

func lookKind(dir int, name string) byte {
	var stat syscall.Stat_t
	if statAt(dir, name, &stat) != nil {
		return dtFifo // gone, or closed to us: nothing to open
	}
	return byte(stat.Mode & syscall.S_IFMT >> 12)
}

// inPathOrder sorts so that a walk yields whole paths in byte order: "a", "a-b", "a/c".
func inPathOrder(entries []folderEntry) []folderEntry {
	for _, e := range entries[:len(entries):len(entries)] {
		if e.kind == dtDir {
			entries = append(entries, folderEntry{name: e.name, kind: e.kind, contents: true})
		}
	}
	key := func(e folderEntry) string {
		if e.contents {
			return e.name + "/"
		}
		return e.name
	}
	slices.SortFunc(entries, func(a, b folderEntry) int { return strings.Compare(key(a), key(b)) })
	return entries
}

// kindName is how results call a dt value.
func kindName(kind byte) string {
	switch kind {
	case dtRegular:
		return "file"
	case dtDir:
		return "dir"
	case dtSymlink:
		return "symlink"
	}
	return "other"
}

// printable is the path itself, or for a name that is not UTF-8 its bytes escaped; ok is false then.
func printable(path string) (text string, ok bool) {
	if utf8.ValidString(path) {
		return path, true
	}
	var b strings.Builder
	for rest := path; rest != ""; {
		r, size := utf8.DecodeRuneInString(rest)
		if r == utf8.RuneError && size == 1 {
			b.WriteString(`\x` + string("0123456789abcdef"[rest[0]>>4]) + string("0123456789abcdef"[rest[0]&15]))
		} else {
			b.WriteString(rest[:size])
		}
		rest = rest[size:]
	}
	return b.String(), false
}

// prefixed gives the paths of a walk back in the form they were asked in: what a result names can be asked for as it stands.
func (w place) prefixed(below string) string {
	names := strings.Join(w.named(), "/")
	switch {
	case strings.HasPrefix(w.asked, "/"):
		return "/" + join(names, below)
	default:
		return join(names, below)
	}
}

// named are the names of the path as asked.
func (w place) named() []string {
	names, _ := split(w.asked)
	return names
}

type listEntry struct {
	Path string `json:"path"`
	Kind string `json:"kind"`
	Size int64  `json:"size_bytes"`
	Mode uint32 `json:"mode"`
}

type listResult struct {
	Type      string      `json:"type"`
	Entries   []listEntry `json:"entries"`
	Truncated bool        `json:"truncated"`
}

func (p *paths) list(op *listOp) (any, error) {
	where, failure := p.locate(op.Path, false)
	if failure != nil {
		return nil, failure
	}
	start, err := openStart(where)
	if err != nil {
		return nil, err
	}
	defer syscall.Close(start)
	result, room := &listResult{Type: "list", Entries: []listEntry{}}, maxResultText
	w := walker{maxDepth: op.Depth, enter: p.mayEnter(where, nil)}
	w.visit = func(f found) error {
		text, ok := printable(where.prefixed(f.path))
		if room -= len(text) + 64; len(result.Entries) >= op.Limit || room < 0 {
			result.Truncated = true
			return errStop
		}
		var stat syscall.Stat_t
		if statAt(f.dir, f.name, &stat) != nil {
			return nil // gone meanwhile
		}
		entry := listEntry{Path: text, Kind: kindName(byte(stat.Mode & syscall.S_IFMT >> 12)), Size: stat.Size, Mode: stat.Mode & 0o7777}
		if !ok {
			entry.Kind = "other"
		}
		result.Entries = append(result.Entries, entry)
		return nil
	}
	if err := w.walk(start, "", 1); err != nil && !errors.Is(err, errStop) {
		return nil, err
	}
	return result, nil
}

// openStart opens the folder of a walk for listing.
func openStart(where place) (int, error) {
	dir, err := openDirectory(where)
	if err != nil {
		return -1, err
	}
	defer syscall.Close(dir)
	return openListing(dir)
}

// mayEnter keeps a walk out of .git and, where it began above them, out of the closed places; `also` narrows further.
func (p *paths) mayEnter(where place, also func(found) bool) func(found) bool {
	return func(f found) bool {
		if f.name == ".git" {
			return false
		}
		if where.start == p.slash {
			full := where.prefixed(f.path)
			for _, closed := range p.closed {
				if full == closed {
					return false
				}
			}
		}
		return also == nil || also(f)
	}
}
