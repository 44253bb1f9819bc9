package main

import (
	"bytes"
	"fmt"
	"path"
	"strings"
	"testing"
	"unicode/utf8"
)

func TestCaptureKeepsHeadAndTail(t *testing.T) {
	for _, limit := range []int{0, 1, 2, 7, 100, 1001} {
		for _, size := range []int{0, 1, 2, 6, 7, 8, 99, 100, 101, 5000} {
			for _, chunk := range []int{1, 3, 64, 5000} {
				checkCapture(t, limit, size, chunk)
			}
		}
	}
}

func checkCapture(t *testing.T, limit, size, chunk int) {
	t.Helper()
	sent := make([]byte, size)
	for i := range sent {
		sent[i] = byte('a' + i%26)
	}
	c := newCapture(limit, limit/2)
	for rest := sent; len(rest) > 0; rest = rest[min(chunk, len(rest)):] {
		c.write(rest[:min(chunk, len(rest))])
	}
	out := c.output()
	where := fmt.Sprintf("limit %d size %d chunk %d", limit, size, chunk)
	if out.Total != int64(size) || out.Cut != out.Total-int64(len(out.Head)+len(out.Tail)) {
		t.Fatalf("%s: total %d cut %d", where, out.Total, out.Cut)
	}
	if size <= limit && !bytes.Equal(out.Head, sent) {
		t.Fatalf("%s: not whole", where)
	}
	if size > limit && (!bytes.Equal(out.Head, sent[:limit/2]) || !bytes.Equal(out.Tail, sent[size-(limit-limit/2):])) {
		t.Fatalf("%s: head %q tail %q", where, out.Head, out.Tail)
	}
}

func TestCaptureCanBeFollowed(t *testing.T) {
	c := newCapture(8, 4)
	var seen []byte
	offset := int64(0)
	for _, part := range []string{"abc", "defgh", "i", "jklmnopqrstuvwxyz"} {
		c.write([]byte(part))
		var data []byte
		data, offset, _, _ = c.after(offset)
		seen = append(seen, data...)
	}
	if string(seen) != "abcdefghi"+"wxyz" {
		t.Fatalf("followed %q", seen)
	}
	c.close()
	if _, _, over, _ := c.after(offset); !over {
		t.Fatal("not over")
	}
}

func FuzzCaptureIsNeverCutInsideACharacter(f *testing.F) {
	f.Add("aé€😀", uint8(5))
	f.Fuzz(func(t *testing.T, text string, limit uint8) {
		if !utf8.ValidString(text) {
			t.Skip()
		}
		c := newCapture(int(limit), int(limit)/2)
		for i := range len(text) {
			c.write([]byte{text[i]})
		}
		out := c.output()
		if !utf8.Valid(out.Head) || !utf8.Valid(out.Tail) {
			t.Fatalf("%q %q", out.Head, out.Tail)
		}
		if !strings.HasPrefix(text, string(out.Head)) || !strings.HasSuffix(text, string(out.Tail)) {
			t.Fatalf("not head and tail: %q %q", out.Head, out.Tail)
		}
	})
}

// slowMatch is the definition: ** is any number of names, * any run of characters, by trying everything.
func slowMatch(parts [][]globItem, names []string) bool {
	switch {
	case len(parts) == 0:
		return len(names) == 0
	case parts[0] == nil:
		return slowMatch(parts[1:], names) || len(names) > 0 && slowMatch(parts, names[1:])
	}
	return len(names) > 0 && slowPart(parts[0], []rune(names[0])) && slowMatch(parts[1:], names[1:])
}

func slowPart(items []globItem, name []rune) bool {
	switch {
	case len(items) == 0:
		return len(name) == 0
	case items[0].star:
		return slowPart(items[1:], name) || len(name) > 0 && slowPart(items, name[1:])
	}
	return len(name) > 0 && items[0].matches(name[0]) && slowPart(items[1:], name[1:])
}

func FuzzGlobMatchesItsDefinition(f *testing.F) {
	for _, seed := range [][2]string{
		{"**/*.py", "a/b/c.py"}, {"a/**/b", "a/b"}, {"[!a-c]?*", "dxy"}, {"**/**/a", "a"}, {"*a*b*", "xaybz"}, {"[]a]", "]"}, {"a**b", "axxb"},
	} {
		f.Add(seed[0], seed[1])
	}
	f.Fuzz(func(t *testing.T, pattern, name string) {
		if len(pattern) > 30 || len(name) > 30 || !utf8.ValidString(name) || path.Clean(name) != name {
			t.Skip()
		}
		g, failure := parseGlobPattern(pattern)
		if failure != nil {
			return
		}
		if fast, slow := g.matchPath(name), slowMatch(g.parts, strings.Split(name, "/")); fast != slow {
			t.Fatalf("%q on %q: %v, by definition %v", pattern, name, fast, slow)
		}
	})
}

func TestGlobsCostLittle(t *testing.T) {
	g, failure := parseGlobPattern(strings.Repeat("**/*a*b*c*/", 30) + "z")
	if failure != nil {
		t.Fatal(failure)
	}
	if g.matchPath(strings.Repeat(strings.Repeat("abc", 80)+"/", 100) + "y") {
		t.Fatal("matched")
	}
}

func FuzzPathsAreBounded(f *testing.F) {
	for _, seed := range []string{"a/b", "/etc/passwd", "../x", "a//./b", "a\x00b", "", "\xff", strings.Repeat("a/", 5000)} {
		f.Add(seed)
	}
	p := &paths{config: &Config{Workspace: "/w", Home: "/h", Tmp: "/t"}, closed: []string{"/proc"},
		roots: []root{{"/w", 10}, {"/h", 11}, {"/t", 12}}, slash: 13}
	f.Fuzz(func(t *testing.T, text string) {
		where, failure := p.locate(text, true)
		if failure != nil {
			if !utf8.ValidString(failure.Message) || failure.Code == "" {
				t.Fatalf("message %q", failure.Message)
			}
			return
		}
		if where.start == p.slash {
			t.Fatalf("%q may be written from the root", text)
		}
		for _, name := range where.names {
			if name == "" || name == "." || name == ".." || strings.ContainsAny(name, "/\x00") {
				t.Fatalf("%q holds the name %q", text, name)
			}
		}
	})
}

func FuzzRequestsAreParsedOrRefused(f *testing.F) {
	for _, seed := range []string{
		`{"op":{"type":"note","data_b64":"AA=="},"call":{"key":"k","sequence":1,"tool":"t","arguments":{}}}`,
		`{"op":{"type":"exec","argv":["a"],"timeout_s":1,"env":{"A":"b"},"principal":"trusted"}}`,
		`{"op":{"type":"write","path":"a","data_b64":"","mode":420,"expected_sha256":null}}`,
		`{"op":{"type":"edit","path":"a","old":"\ud800","new":"b","expected_count":null}}`,
		`{"op":{"type":"search","pattern":"a","glob":null,"limit":1}}`, `{}`, `[]`, `null`, `{"op":null}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		op, _, err := parseRequest(raw)
		if (op == nil) == (err == nil) {
			t.Fatalf("%v, %v", op, err)
		}
		if err == nil && fingerprint(op) != fingerprint(op) {
			t.Fatal("the fingerprint varies")
		}
		if err != nil && !utf8.ValidString(err.Error()) {
			t.Fatalf("message %q", err)
		}
	})
}

func TestFingerprintsLeaveOutTimeoutsAndNotes(t *testing.T) {
	one, two := &execOp{Argv: []string{"a"}, Timeout: 1}, &execOp{Argv: []string{"a"}, Timeout: 2}
	if fingerprint(one) != fingerprint(two) {
		t.Error("a time-out makes another operation")
	}
	two.Argv = []string{"b"}
	if fingerprint(one) == fingerprint(two) {
		t.Error("other arguments make the same operation")
	}
	if fingerprint(&noteOp{Data: []byte("a")}) != fingerprint(&noteOp{Data: []byte("b")}) {
		t.Error("another note is another operation")
	}
	if fingerprint(&readOp{Path: "a"}) == fingerprint(&listOp{Path: "a"}) {
		t.Error("kinds are not told apart")
	}
}

func TestHalfSurrogates(t *testing.T) {
	for raw, half := range map[string]bool{
		`{"a":"\ud800"}`: true, `{"a":"x\udfff"}`: true, `{"a":"\ud83d\ud83d\ude00"}`: true, `{"a":"\ud83d\ude00\ufffd"}`: false,
		`{"a":"\\ud800\ufffd"}`: false, `{"a":"\ufffd"}`: false, `{"a":"\\\ud800"}`: true, `{"a":"😀"}`: false,
	} {
		f, err := parseObject([]byte(raw))
		if err != nil {
			t.Fatal(err)
		}
		if f.required("a"); f.halves != half {
			t.Errorf("%s: %v", raw, f.halves)
		}
	}
}

func FuzzStatusesAreParsed(f *testing.F) {
	f.Add([]byte("Name:\tx\nState:\tZ (zombie)\nPPid:\t7\nUid:\t5\t5\t5\t5\nGroups:\t3 4 \n"))
	f.Fuzz(func(_ *testing.T, text []byte) { parseStatus(1, text) })
}

func TestStatusFields(t *testing.T) {
	p := parseStatus(9, []byte("Name:\tUid:\nState:\tZ (zombie)\nPPid:\t7\nUid:\t5\t6\t7\t8\nGroups:\t3 4000000000 \n"))
	if p.pid != 9 || !p.zombie || p.parent != 7 || p.uid != 5 || len(p.groups) != 2 || p.groups[1] != 4000000000 {
		t.Fatalf("%+v", p)
	}
}

func TestATreeIsItsTaggedProcessesAndTheirDescendants(t *testing.T) {
	all := []process{
		{pid: 2, parent: 1, groups: []uint32{7}}, {pid: 3, parent: 2}, {pid: 4, parent: 3}, {pid: 5, parent: 1},
		{pid: 6, parent: 5}, {pid: 8, parent: 1, groups: []uint32{7}, zombie: true}, {pid: 9, parent: 8},
	}
	var pids []int
	for _, p := range members(all, func(p process) bool { return len(p.groups) > 0 && p.groups[0] == 7 }) {
		pids = append(pids, p.pid)
	}
	if fmt.Sprint(pids) != "[2 3 4 9]" {
		t.Fatal(pids)
	}
}

func TestFoldersAreWalkedInTheOrderOfPaths(t *testing.T) {
	var names []string
	for _, e := range inPathOrder([]folderEntry{{"a-b", dtRegular, false}, {"a", dtDir, false}, {"a0", dtRegular, false}}) {
		name := e.name
		if e.contents {
			name += "/"
		}
		names = append(names, name)
	}
	if strings.Join(names, " ") != "a a-b a/ a0" {
		t.Fatal(names)
	}
}

func TestConfigurationsAreChecked(t *testing.T) {
	for _, raw := range []string{
		`{"uid_base":5,"more":1}`, `{"uid_base":0}`, `{"uid_base":5,"mode":"x"}`, `{"uid_base":5,"socket":"relative"}`,
		`{"uid_base":5,"workspace":"/a/../b"}`, `{"uid_base":5,"journal_limit_bytes":1}`, `{"uid_base":"5"}`, `[]`,
	} {
		if _, err := parseConfig([]byte(raw)); err == nil {
			t.Errorf("%s was taken", raw)
		}
	}
}
