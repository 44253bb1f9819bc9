package main

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	// A changed file over maxHashFile is told without its hash, and so is what lies beyond maxHashTotal in all: a sparse file of a
	// terabyte costs nothing to make and hours to read. Files of the size the manifest says are always read.
	maxHashFile  = 256 << 20
	maxHashTotal = 2 << 30
	maxManifest  = 2_000_000
	hashBuffer   = 128 << 10
	// maxDeltaText bounds the paths of a delta: as JSON six times as long, which with the rest of 20,000 entries a reply of 64 MiB holds.
	maxDeltaText = 8 << 20
)

// sealed is what the manifest says of a path: a file, or a symlink with its target.
type sealed struct {
	link   bool
	target string
	exec   bool
	mode   uint32
	size   int64
	hash   digest
	seen   bool
}

// change is one difference. Zero fields are as the protocol says: a deletion has no size and no hash.
type change struct {
	Path string  `json:"path"`
	Kind string  `json:"kind"`
	Type string  `json:"type"`
	Mode uint32  `json:"mode"`
	Size int64   `json:"size_bytes"`
	Hash *string `json:"sha256"`
}

type deltaReply struct {
	Changes   []change `json:"changes"`
	Truncated bool     `json:"truncated"`
	Files     int      `json:"files"`
}

type deltaRequest struct {
	root     string
	manifest map[string]*sealed
	ignore   []string
	max      int
}

func (a *agent) postDelta(w http.ResponseWriter, r *http.Request) error {
	if err := http.NewResponseController(w).SetReadDeadline(time.Now().Add(streamTimeout)); err != nil {
		return err
	}
	request, err := parseDelta(http.MaxBytesReader(w, r.Body, maxStreamedBody))
	var over *http.MaxBytesError
	if errors.As(err, &over) {
		return tooLarge(maxStreamedBody)
	}
	if err != nil {
		return badRequest("%s", err)
	}
	where, failure := a.paths.locate(request.root, false)
	if failure != nil {
		return failure
	}
	d := newDifference(a, request)
	if err := d.run(where); err != nil {
		return err
	}
	reply(w, http.StatusOK, d.reply)
	return nil
}

// parseDelta reads the body as it comes: manifests are long.
func parseDelta(body io.Reader) (*deltaRequest, error) {
	request := &deltaRequest{manifest: map[string]*sealed{}, ignore: []string{".git"}, max: 20_000}
	decoder := json.NewDecoder(body)
	bad := errors.New("not an object of root, manifest, ignore and max_entries")
	if token, err := decoder.Token(); err != nil || token != json.Delim('{') {
		return nil, orBad(err, bad)
	}
	for decoder.More() {
		name, err := decoder.Token()
		if err != nil {
			return nil, orBad(err, bad)
		}
		switch name {
		case "root":
			err = decoder.Decode(&request.root)
		case "ignore":
			request.ignore = nil
			err = decoder.Decode(&request.ignore)
		case "max_entries":
			err = decoder.Decode(&request.max)
		case "manifest":
			err = request.readManifest(decoder)
		default:
			return nil, bad
		}
		if err != nil {
			return nil, orBad(err, bad)
		}
	}
	if _, err := decoder.Token(); err != nil {
		return nil, orBad(err, bad)
	}
	if request.root == "" || request.max < 0 || request.max > 1_000_000 || len(request.ignore) > 1000 {
		return nil, bad
	}
	return request, nil
}

// orBad keeps the one error that is not about the text.
func orBad(err, bad error) error {
	var over *http.MaxBytesError
	if errors.As(err, &over) {
		return err
	}
	return bad
}

func (q *deltaRequest) readManifest(decoder *json.Decoder) error {
	bad := errors.New("bad manifest")
	if token, err := decoder.Token(); err != nil || token != json.Delim('{') {
		return orBad(err, bad)
	}
	for decoder.More() {
		token, err := decoder.Token()
		if err != nil {
			return err
		}
		path, _ := token.(string)
		if path == "" || len(q.manifest) >= maxManifest {
			return bad
		}
		var raw json.RawMessage
		if err := decoder.Decode(&raw); err != nil {
			return err
		}
		entry, err := parseSealed(raw)
		if err != nil {
			return err
		}
		q.manifest[path] = entry
	}
	_, err := decoder.Token()
	return err
}

// parseSealed reads ["file", mode, size, "sha256"] or ["symlink", "target"].
func parseSealed(raw []byte) (*sealed, error) {
	var parts []json.RawMessage
	var kind, text string
	bad := errors.New("bad manifest entry")
	if json.Unmarshal(raw, &parts) != nil || len(parts) < 2 || json.Unmarshal(parts[0], &kind) != nil ||
		json.Unmarshal(parts[len(parts)-1], &text) != nil {
		return nil, bad
	}
	if kind == "symlink" && len(parts) == 2 {
		return &sealed{link: true, target: text}, nil
	}
	entry := &sealed{}
	if kind != "file" || len(parts) != 4 || !isHash(text) || json.Unmarshal(parts[1], &entry.mode) != nil ||
		json.Unmarshal(parts[2], &entry.size) != nil || entry.size < 0 {
		return nil, bad
	}
	if _, err := hex.Decode(entry.hash[:], []byte(text)); err != nil {
		return nil, bad
	}
	entry.exec = entry.mode&0o100 != 0
	return entry, nil
}

// difference compares a tree with its manifest. One thread walks, others hash; all act as the commands' uid.
type difference struct {
	agent   *agent
	request *deltaRequest
	ignored map[string]bool
	mu      sync.Mutex
	reply   *deltaReply
	budget  int64
	room    int // for paths, in bytes
	work    chan func()
	running sync.WaitGroup
}

func newDifference(a *agent, request *deltaRequest) *difference {
	d := &difference{agent: a, request: request, budget: maxHashTotal, room: maxDeltaText, ignored: map[string]bool{}}
	d.reply = &deltaReply{Changes: []change{}}
	for _, name := range request.ignore {
		d.ignored[name] = true
	}
	return d
}

func (d *difference) run(where place) (err error) {
	d.work = make(chan func(), 64)
	d.agent.crew.as(d.agent.config.UID(0), func() {
		// Helpers are asked for only now that the walk has its thread: it must never wait for them.
		for range fileThreads - 1 {
			d.running.Add(1)
			go d.help()
		}
		func() {
			defer close(d.work)
			err = d.walk(where)
		}()
		d.hashing()
	})
	d.running.Wait()
	d.finish()
	return err
}

func (d *difference) help() {
	defer d.running.Done()
	if failure := guarded(func() { d.agent.crew.as(d.agent.config.UID(0), d.hashing) }); failure != nil {
		logf("delta: %v", failure)
		d.mu.Lock()
		defer d.mu.Unlock()
		d.reply.Truncated = true
	}
}

// hashing takes files until there are no more.
func (d *difference) hashing() {
	for work := range d.work {
		work()
	}
}

// later hands work to whoever is free, and does it at once where nobody is.
func (d *difference) later(work func()) {
	select {
	case d.work <- work:
	default:
		work()
	}
}

func (d *difference) walk(where place) error {
	start, err := openStart(where)
	if errors.Is(err, syscall.EACCES) {
		start, err = d.unlockStart(where)
	}
	if err != nil {
		return refusal(where.asked, err)
	}
	defer syscall.Close(start)
	w := walker{maxDepth: maxDepth, visit: d.visit, missed: d.missed, unlock: true}
	w.enter = func(f found) bool { return f.depth > 1 || !d.ignored[f.name] }
	return w.walk(start, "", 1)
}

// unlockStart opens a root that its owner closed to itself.
func (d *difference) unlockStart(where place) (int, error) {
	dir, err := openDirectory(where)
	if err != nil {
		return -1, err
	}
	defer syscall.Close(dir)
	return reopenUnlocked(dir)
}

// missed is a folder that cannot be seen into: never silently the same.
func (d *difference) missed(f found) {
	d.add(change{Path: f.path, Kind: "added", Type: "other"})
}

func (d *difference) visit(f found) error {
	if f.depth == 1 && d.ignored[f.name] || f.kind == dtDir {
		return nil
	}
	text, ok := printable(f.path)
	entry := d.request.manifest[f.path]
	if !ok {
		entry = nil
	}
	if entry != nil {
		entry.seen = true
	}
	d.mu.Lock()
	d.reply.Files++
	d.mu.Unlock()
	switch {
	case !ok || f.kind != dtRegular && f.kind != dtSymlink:
		d.add(change{Path: text, Kind: kindOf(entry), Type: "other"})
	case f.kind == dtSymlink:
		d.symlink(f, text, entry)
	default:
		d.file(f, text, entry)
	}
	return nil
}

func kindOf(entry *sealed) string {
	if entry == nil {
		return "added"
	}
	return "modified"
}

func (d *difference) symlink(f found, text string, entry *sealed) {
	target, err := readlinkAt(f.dir, f.name)
	if err == nil && entry != nil && entry.link && entry.target == target {
		return
	}
	d.add(change{Path: text, Kind: kindOf(entry), Type: "symlink", Size: int64(len(target))})
}

// file opens here, while the folder is open, and leaves the reading to whoever is free.
func (d *difference) file(f found, text string, entry *sealed) {
	fd, stat, err := openLocked(f.dir, f.name)
	if err != nil {
		d.add(change{Path: text, Kind: kindOf(entry), Type: "other"})
		return
	}
	same := entry != nil && !entry.link && entry.size == stat.Size
	if !same && !d.spend(stat.Size) {
		_ = syscall.Close(fd)
		d.add(change{Path: text, Kind: kindOf(entry), Type: "file", Mode: stat.Mode & 0o777, Size: stat.Size})
		return
	}
	d.later(func() {
		defer syscall.Close(fd)
		d.compare(fd, stat, text, entry)
	})
}

// spend tells whether a file that surely differs may still be hashed.
func (d *difference) spend(size int64) bool {
	if size > maxHashFile || size > d.budget {
		return false
	}
	d.budget -= size
	return true
}

var hashBuffers = sync.Pool{New: func() any { return new([hashBuffer]byte) }}

func (d *difference) compare(fd int, stat syscall.Stat_t, text string, entry *sealed) {
	buffer := hashBuffers.Get().(*[hashBuffer]byte)
	defer hashBuffers.Put(buffer)
	hash, err := hashFile(fd, buffer[:])
	found := change{Path: text, Kind: kindOf(entry), Type: "file", Mode: stat.Mode & 0o777, Size: stat.Size}
	if err != nil {
		found.Type = "other"
		d.add(found)
		return
	}
	if entry != nil && !entry.link && entry.hash == hash && entry.exec == (stat.Mode&0o100 != 0) {
		return
	}
	name := hex.EncodeToString(hash[:])
	found.Hash = &name
	d.add(found)
}

func (d *difference) add(c change) {
	d.mu.Lock()
	defer d.mu.Unlock()
	// A path that no request can name is of no use to who gets the delta, and a model can make thousands of them.
	if len(d.reply.Changes) >= d.request.max || len(c.Path) > maxPathBytes || len(c.Path) > d.room {
		d.reply.Truncated = true
		return
	}
	d.room -= len(c.Path)
	d.reply.Changes = append(d.reply.Changes, c)
}

// finish adds what the manifest names and nobody met, and sorts.
func (d *difference) finish() {
	for path, entry := range d.request.manifest {
		first, _, _ := strings.Cut(path, "/")
		if entry.seen || d.ignored[first] {
			continue
		}
		kind := "file"
		if entry.link {
			kind = "symlink"
		}
		d.add(change{Path: path, Kind: "deleted", Type: kind})
	}
	slices.SortFunc(d.reply.Changes, func(a, b change) int { return strings.Compare(a.Path, b.Path) })
}
