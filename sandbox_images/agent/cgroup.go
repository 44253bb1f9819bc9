package main

import (
	"bufio"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// cgroup reads what the kernel counts for this box, version 1 or 2; nothing where it is not visible.
type cgroup struct {
	events *os.File
	pids   string
}

func openCgroup() *cgroup {
	c := &cgroup{}
	text, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return c
	}
	for _, line := range strings.Split(string(text), "\n") {
		parts := strings.SplitN(line, ":", 3)
		if len(parts) != 3 {
			continue
		}
		switch controllers := "," + parts[1] + ","; {
		case controllers == ",,":
			c.use("/sys/fs/cgroup", parts[2], "memory.events", "pids.max")
		case strings.Contains(controllers, ",memory,"):
			c.use("/sys/fs/cgroup/memory", parts[2], "memory.oom_control", "")
		case strings.Contains(controllers, ",pids,"):
			c.use("/sys/fs/cgroup/pids", parts[2], "", "pids.max")
		}
	}
	return c
}

// use tries the mount's root (a private cgroup namespace, or a container's own mount), then the path below it.
func (c *cgroup) use(mount, below, events, pids string) {
	for _, folder := range []string{filepath.Join(mount, below), mount} {
		if events != "" && c.events == nil {
			if file, err := os.Open(filepath.Join(folder, events)); err == nil {
				c.events = file
			}
		}
		if name := filepath.Join(folder, pids); pids != "" && c.pids == "" {
			if _, err := os.Stat(name); err == nil {
				c.pids = name
			}
		}
	}
}

// oomKills counts processes of the box that the kernel ended for want of memory; 0 where that is not visible.
func (c *cgroup) oomKills() int64 {
	if c.events == nil {
		return 0
	}
	var buffer [1024]byte
	count, err := syscall.Pread(int(c.events.Fd()), buffer[:], 0)
	if err != nil {
		return 0
	}
	return lineValue(string(buffer[:count]), "oom_kill")
}

// pidsLimit is 0 where there is none to be seen.
func (c *cgroup) pidsLimit() int64 {
	if c.pids == "" {
		return 0
	}
	text, err := os.ReadFile(c.pids)
	if err != nil {
		return 0
	}
	limit, _ := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
	return limit
}

// lineValue finds "name value" among lines.
func lineValue(text, name string) int64 {
	lines := bufio.NewScanner(strings.NewReader(text))
	for lines.Scan() {
		if key, value, found := strings.Cut(lines.Text(), " "); found && key == name {
			number, _ := strconv.ParseInt(strings.TrimSpace(value), 10, 64)
			return number
		}
	}
	return 0
}
