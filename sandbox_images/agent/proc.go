package main

import (
	"bytes"
	"strconv"
	"syscall"
)

// process is what /proc says of one: zombies (already dead, not yet reaped) and stopped ones are marked.
type process struct {
	pid, parent int
	uid         int
	zombie      bool
	stopped     bool
	groups      []uint32
}

// procTable reads /proc through one descriptor.
type procTable struct{ fd int }

func openProc() (*procTable, error) {
	fd, err := openAt(-100, "/proc", syscall.O_RDONLY|syscall.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	return &procTable{fd: fd}, nil
}

// scan lists every process but ourselves. Processes that vanish meanwhile are left out.
func (t *procTable) scan() []process {
	found, _ := t.look()
	return found
}

// look is scan, and whether a process vanished while it was looked at: what it started since may not be in the list.
func (t *procTable) look() (found []process, vanished bool) {
	fd, err := openAt(t.fd, ".", syscall.O_RDONLY|syscall.O_DIRECTORY, 0)
	if err != nil {
		return nil, true
	}
	defer syscall.Close(fd)
	self := syscall.Getpid()
	_ = eachEntry(fd, func(name string, _ byte) error {
		if pid, err := strconv.Atoi(name); err == nil && pid != self {
			p, ok := t.read(pid)
			if ok {
				found = append(found, p)
			}
			vanished = vanished || !ok
		}
		return nil
	})
	return found, vanished
}

// pids are those of every process but ourselves.
func (t *procTable) pids() map[int]bool {
	found := map[int]bool{}
	fd, err := openAt(t.fd, ".", syscall.O_RDONLY|syscall.O_DIRECTORY, 0)
	if err != nil {
		return found
	}
	defer syscall.Close(fd)
	self := syscall.Getpid()
	_ = eachEntry(fd, func(name string, _ byte) error {
		if pid, err := strconv.Atoi(name); err == nil && pid != self {
			found[pid] = true
		}
		return nil
	})
	return found
}

func (t *procTable) read(pid int) (process, bool) {
	fd, err := openAt(t.fd, strconv.Itoa(pid)+"/status", syscall.O_RDONLY, 0)
	if err != nil {
		return process{}, false
	}
	defer syscall.Close(fd)
	var buffer [4096]byte
	count, err := readFull(fd, buffer[:], 0)
	if err != nil || count == 0 {
		return process{}, false
	}
	return parseStatus(pid, buffer[:count]), true
}

// parseStatus reads the lines it needs; the first line (Name) is the process's own to choose, and is passed over.
func parseStatus(pid int, text []byte) process {
	p := process{pid: pid, uid: -1}
	for index, line := range bytes.Split(text, []byte("\n")) {
		name, rest, found := bytes.Cut(line, []byte(":"))
		if !found || index == 0 {
			continue
		}
		switch string(name) {
		case "State":
			state := bytes.TrimSpace(rest)
			p.zombie = len(state) > 0 && (state[0] == 'Z' || state[0] == 'X')
			p.stopped = len(state) > 0 && state[0] == 'T'
		case "PPid":
			p.parent, _ = strconv.Atoi(string(bytes.TrimSpace(rest)))
		case "Uid":
			if ids := bytes.Fields(rest); len(ids) > 0 {
				p.uid, _ = strconv.Atoi(string(ids[0]))
			}
		case "Groups":
			p.groups = parseGroups(rest)
		}
	}
	return p
}

func parseGroups(rest []byte) (groups []uint32) {
	for _, field := range bytes.Fields(rest) {
		if gid, err := strconv.ParseUint(string(field), 10, 32); err == nil {
			groups = append(groups, uint32(gid))
		}
	}
	return groups
}

// environ is the process's own environment block, where we may read it.
func (t *procTable) environ(pid int) []byte {
	fd, err := openAt(t.fd, strconv.Itoa(pid)+"/environ", syscall.O_RDONLY, 0)
	if err != nil {
		return nil
	}
	defer syscall.Close(fd)
	buffer := make([]byte, 64<<10)
	count, _ := readFull(fd, buffer, 0)
	return buffer[:count]
}
