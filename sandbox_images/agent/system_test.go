package main

import (
	"archive/tar"
	"bytes"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestJournalGivesBackWhatItTook(t *testing.T) {
	folder := filepath.Join(t.TempDir(), "state")
	j, err := openJournal(folder, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := openJournal(folder, 1<<20); err != errLostBoot {
		t.Fatalf("a second start: %v", err)
	}
	small, _ := j.append(recordBegin, []byte("small"))
	big, err := j.append(recordResult, bytes.Repeat([]byte("x"), 600_000))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := j.append(recordResult, make([]byte, 600_000)); err != errJournalFull {
		t.Fatalf("over the limit: %v", err)
	}
	if _, err := j.append(recordAck, make([]byte, 600_000)); err != nil {
		t.Fatalf("an acknowledgement: %v", err)
	}
	if data, err := j.read(big); err != nil || len(data) != 600_000 {
		t.Fatal(err)
	}
	j.forget(big)
	if _, err := j.read(big); err == nil {
		t.Fatal("what was given back can still be read")
	}
	if data, err := j.read(small); err != nil || string(data) != "small" {
		t.Fatalf("%q %v", data, err)
	}
}

func TestAJournalWithoutHolesBeginsAgainWhenNothingIsKept(t *testing.T) {
	j, err := openJournal(t.TempDir(), 4<<20)
	if err != nil {
		t.Fatal(err)
	}
	r := newRegistry(j)
	run := func(key string) {
		t.Helper()
		op := &noteOp{Data: bytes.Repeat([]byte("x"), 1<<20)}
		state, fresh, refused := r.begin(key, 0, op, &header{Key: key, Tool: "t", Arguments: []byte("{}")})
		if refused != nil || !fresh {
			t.Fatalf("%s: %v", key, refused)
		}
		r.finish(state, op.Data)
	}
	j.solid = true // as under gVisor, where fallocate cannot punch
	run("first")
	run("second")
	if _, _, refused := r.begin("third", 0, &noteOp{}, &header{Key: "third", Tool: "t", Arguments: []byte("{}")}); refused == nil {
		t.Fatal("there was room without any acknowledgement")
	}
	if refused := r.acknowledge([]string{"first"}); refused != nil {
		t.Fatal(refused)
	}
	state, _ := r.find("second", 0)
	if data, err := r.kept(state); err != nil || len(data) != 1<<20 {
		t.Fatalf("what is not acknowledged is kept: %d %v", len(data), err)
	}
	if refused := r.acknowledge([]string{"second"}); refused != nil {
		t.Fatal(refused)
	}
	if j.bytes() != 0 {
		t.Fatalf("%d bytes are left", j.bytes())
	}
	run("third")
	if _, _, refused := r.begin("first", 0, &noteOp{}, &header{Key: "first", Tool: "t", Arguments: []byte("{}")}); refused == nil || refused.code != "tombstoned" {
		t.Fatalf("a tombstone is not kept: %v", refused)
	}
}

func TestADamagedRecordIsNotBelieved(t *testing.T) {
	j, err := openJournal(t.TempDir(), 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	where, _ := j.append(recordResult, []byte("result"))
	if _, err := j.file.WriteAt([]byte("R"), where.offset); err != nil {
		t.Fatal(err)
	}
	if _, err := j.read(where); err != errJournalBroken {
		t.Fatalf("read: %v", err)
	}
}

func FuzzTarsAreUnpackedBelowOrRefused(f *testing.F) {
	var buffer bytes.Buffer
	w := tar.NewWriter(&buffer)
	_ = w.WriteHeader(&tar.Header{Name: "a/b", Size: 1, Mode: 0o644, Typeflag: tar.TypeReg})
	_, _ = w.Write([]byte("x"))
	_ = w.WriteHeader(&tar.Header{Name: "../c", Linkname: "/etc", Typeflag: tar.TypeSymlink})
	_ = w.Close()
	f.Add(buffer.Bytes())
	outer := f.TempDir()
	base := filepath.Join(outer, "base")
	if err := os.Mkdir(base, 0o755); err != nil {
		f.Fatal(err)
	}
	fd, err := openAt(-100, base, oPath|syscall.O_DIRECTORY, 0)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		_, _ = unpackTar(place{start: fd, asked: "."}, io.LimitReader(bytes.NewReader(data), 1<<20), len(data)%2 == 0)
		entries, err := os.ReadDir(outer)
		if err != nil || len(entries) != 1 {
			t.Fatalf("%v %v", entries, err)
		}
	})
}

func TestKillingAUIDSparesTheOthers(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("not root")
	}
	const uid = 1_234_567_890
	k, err := newKiller(&Config{UIDBase: uid, UIDCount: 2})
	if err != nil {
		t.Fatal(err)
	}
	start := func(as uint32) *exec.Cmd {
		command := exec.Command("sleep", "60")
		command.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: as, Gid: as}}
		if err := command.Start(); err != nil {
			t.Fatal(err)
		}
		return command
	}
	victims, neighbour := []*exec.Cmd{start(uid), start(uid)}, start(uid+1)
	done := make(chan error, 1)
	go func() { done <- k.killUID(uid) }()
	for _, victim := range victims {
		if err := victim.Wait(); err == nil || !strings.Contains(err.Error(), "killed") {
			t.Errorf("victim: %v", err)
		}
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	if err := neighbour.Process.Signal(syscall.Signal(0)); err != nil {
		t.Errorf("the neighbour died: %v", err)
	}
	_ = neighbour.Process.Kill()
	_ = neighbour.Wait()
}

func TestASweepThatIsNotDoneInTimeSaysSo(t *testing.T) {
	k, err := newKiller(&Config{UIDBase: 1_234_567_890, UIDCount: 1})
	if err != nil {
		t.Fatal(err)
	}
	if k.sweep(tree{tag: tagBase, root: os.Getppid}, 0) {
		t.Fatal("no time was enough")
	}
	if !k.sweep(tree{tag: tagBase + 1, root: func() int { return 0 }}, time.Second) {
		t.Fatal("an empty tree was not swept")
	}
}

func TestCrewActsAsTheUIDAndComesBack(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("not root")
	}
	folder := t.TempDir()
	if err := os.Chmod(folder, 0o777); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Dir(folder), 0o755); err != nil {
		t.Fatal(err)
	}
	c := newCrew(2, false)
	for _, uid := range []int{1_234_567_890, 1_234_567_891, 1_234_567_890} {
		name := filepath.Join(folder, time.Now().Format("150405.000000000"))
		c.as(uid, func() { _ = os.WriteFile(name, nil, 0o600) })
		info, err := os.Stat(name)
		if err != nil {
			t.Fatal(err)
		}
		if owner := info.Sys().(*syscall.Stat_t).Uid; int(owner) != uid {
			t.Errorf("owner %d, not %d", owner, uid)
		}
	}
	if failure := guarded(func() { c.as(1_234_567_890, func() { panic("inside") }) }); failure != "inside" {
		t.Errorf("panic: %v", failure)
	}
	if os.Geteuid() != 0 {
		t.Error("this thread changed")
	}
}

func TestTryingATagLeavesNone(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("taking a group needs root")
	}
	for range 100 {
		if !tagsWork() {
			t.Fatal("root may take any group")
		}
	}
	tasks, err := filepath.Glob("/proc/self/task/*/status")
	if err != nil || len(tasks) == 0 {
		t.Fatal(tasks, err)
	}
	for _, path := range tasks {
		status, err := os.ReadFile(path)
		if os.IsNotExist(err) || err == syscall.ESRCH {
			continue
		}
		_, groups, _ := strings.Cut(string(status), "\nGroups:")
		groups, _, _ = strings.Cut(groups, "\n")
		for _, group := range strings.Fields(groups) {
			if number, err := strconv.ParseUint(group, 10, 32); err != nil || uint32(number) >= tagBase && uint32(number) < tagBase+tagRange {
				t.Fatalf("%s is in group %s", path, group)
			}
		}
	}
}
