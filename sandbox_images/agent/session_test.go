package main

import (
	"bufio"
	"bytes"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestWhatIsSparedLivesOn(t *testing.T) {
	// 1 is the agent; 10 the shell; 11 an earlier job with a child of its own; 12 the call's, with a child; 13 the call's orphan.
	all := []process{
		{pid: 10, parent: 1}, {pid: 11, parent: 10}, {pid: 21, parent: 11}, {pid: 12, parent: 10}, {pid: 22, parent: 12}, {pid: 13, parent: 1},
	}
	shell := tree{root: func() int { return 10 }, spared: map[int]bool{10: true, 11: true}}
	for _, row := range []struct {
		keep bool
		root int
		want []int
	}{{true, 10, []int{12, 13, 22}}, {false, 10, []int{10, 12, 13, 22}}, {true, 0, []int{12, 13, 22}}} {
		shell.keepRoot, shell.root = row.keep, func() int { return row.root }
		alive := slices.Clone(all)
		if row.root == 0 { // reaped: its children are the agent's now
			alive = slices.DeleteFunc(alive, func(p process) bool { return p.pid == 10 })
			for i := range alive {
				if alive[i].parent == 10 {
					alive[i].parent = 1
				}
			}
		}
		var pids []int
		for _, p := range shell.meant(slices.Clone(alive), slices.Clone(alive)) {
			pids = append(pids, p.pid)
		}
		slices.Sort(pids)
		if !slices.Equal(pids, row.want) {
			t.Fatalf("keep %v, root %d: %v, not %v", row.keep, row.root, pids, row.want)
		}
	}
	shell.spared = nil
	if got := shell.meant(all, slices.Clone(all)); len(got) != len(all) {
		t.Fatalf("a plain command spares nothing: %v", got)
	}
}

func heard(text string) *hearing {
	h := &hearing{status: make(chan int, 1), settled: make(chan struct{})}
	h.hear(bufio.NewReader(strings.NewReader(text)), "N")
	return h
}

func TestHearingTakesItsOwnMarksAlone(t *testing.T) {
	h := heard("noise\nM 1\nN x\nN 7\nexport A='N end'\nN cwdx\nN cwd\n/a\nb\nN end\n")
	if code := <-h.status; code != 7 || h.state == nil || string(h.state.cwd) != "/a\nb" || string(h.state.words) != "export A='N end'\nN cwdx\n" {
		t.Fatalf("%d %+v", code, h.state)
	}
	for _, cut := range []string{"", "N 7", "N 7\nexport", "N 7\nN cwd\n/a\nN en"} {
		if h := heard(cut); h.state != nil {
			t.Fatalf("%q told a state", cut)
		}
	}
	long := strings.Repeat("x", maxStateBytes+1)
	if h := heard("N 0\n" + long + "\nN cwd\n/\nN end\n"); len(h.status) != 1 || h.state != nil {
		t.Fatal("a state that is too large was kept, or its status lost")
	}
}

func FuzzHearing(f *testing.F) {
	f.Add("N 7\nexport A=1\nN cwd\n/a\nN end\n")
	f.Add("N 7\nN cwd\nN cwd\nN end\nN end\n")
	f.Fuzz(func(t *testing.T, text string) {
		if len(text) > 1<<16 {
			return
		}
		h := heard(text)
		<-h.settled
		if h.state != nil && len(h.status) == 0 {
			t.Fatal("a state without a status")
		}
	})
}

func FuzzStateComesBackAsItWas(f *testing.F) {
	f.Add("/a b/it's \"odd\" $HOME `x` \\ \t")
	f.Add("-n")
	f.Fuzz(func(t *testing.T, cwd string) {
		if strings.ContainsRune(cwd, 0) {
			return
		}
		done := exec.Command("/bin/sh", "-c", "printf %s "+quoted(cwd))
		var out bytes.Buffer
		done.Stdout = &out
		if err := done.Run(); err != nil || out.String() != cwd {
			t.Fatalf("%q became %q: %v", cwd, out.String(), err)
		}
	})
}

func TestHearingTakesStatusesThatAShellCanHave(t *testing.T) {
	for _, forged := range []string{"-5", "256", "9223372036854775807", "+1", "0x1", ""} {
		if h := heard("N " + forged + "\nN 255\n"); <-h.status != 255 {
			t.Errorf("%q was taken for a status", forged)
		}
	}
}

func TestReadingStopsAtTheMark(t *testing.T) {
	for _, chunk := range []int{1, 3, 7, 1000} {
		child, mine, err := pipe(true)
		if err != nil {
			t.Fatal(err)
		}
		text := strings.Repeat("lineMAR\n", 50) + "MARK" + "after"
		go func() {
			for rest := text; len(rest) > 0; rest = rest[min(chunk, len(rest)):] {
				_, _ = child.WriteString(rest[:min(chunk, len(rest))])
			}
			_ = child.Close()
		}()
		s := &stream{reader: mine, into: newCapture(4096, 2048)}
		_ = mine.SetReadDeadline(time.Now().Add(5 * time.Second))
		s.readUntil([]byte("MARK"))
		if got := string(s.into.output().Head); got != strings.Repeat("lineMAR\n", 50) {
			t.Fatalf("chunks of %d: %q", chunk, got)
		}
		_ = mine.Close()
	}
}
