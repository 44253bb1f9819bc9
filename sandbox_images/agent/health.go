package main

import (
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

type health struct {
	Protocol int     `json:"protocol"`
	BootID   string  `json:"boot_id"`
	Rollout  *string `json:"rollout"`
	Epoch    int64   `json:"epoch"`
	Frozen   bool    `json:"frozen"`
	Running  int     `json:"running"`
	Uptime   float64 `json:"uptime_s"`
	Mode     string  `json:"mode"`
	Kernel   kernel  `json:"kernel"`
	Posture  posture `json:"posture"`
}

// posture is what holds in this box, looked up and not assumed. Gaps are named, so that a host can refuse a box that has them.
type posture struct {
	AgentUID     int      `json:"agent_uid"`
	CommandUID   int      `json:"command_uid"`
	Capabilities string   `json:"capabilities"`
	NoNewPrivs   bool     `json:"no_new_privs"`
	Seccomp      int      `json:"seccomp"`
	PidsLimit    int64    `json:"pids_limit"`
	JournalBytes int64    `json:"journal_bytes"`
	Gaps         []string `json:"gaps"`
}

func (a *agent) health() *health {
	r := a.registry
	r.mu.Lock()
	h := &health{
		Protocol: protocolVersion, BootID: a.bootID, Epoch: r.epoch, Frozen: r.frozen, Running: r.running,
		Uptime: time.Since(a.started).Seconds(), Mode: "split", Kernel: a.kernel,
	}
	if r.leased {
		rollout := r.rollout
		h.Rollout = &rollout
	}
	r.mu.Unlock()
	if a.config.OneUID {
		h.Mode = "one_uid"
	}
	h.Posture = a.posture()
	return h
}

func (a *agent) posture() posture {
	status := ownStatus()
	p := posture{
		AgentUID: os.Getuid(), CommandUID: a.config.UID(0), Capabilities: status["CapEff"],
		NoNewPrivs: noNewPrivs(), PidsLimit: a.cgroup.pidsLimit(), JournalBytes: a.registry.journal.bytes(),
		Gaps: []string{},
	}
	p.Seccomp, _ = strconv.Atoi(status["Seccomp"])
	for name, open := range map[string]bool{
		"not_pid_1":       os.Getpid() != 1,       // its own death would not end the commands
		"shared_uid":      a.config.OneUID,        // commands can reach the journal and the socket, and a time-out finds its tree by strippable marks
		"no_tags":         !a.killer.tags,         // as above, for the time-out only
		"privileges":      !p.NoNewPrivs,          // a setuid program of the image would raise its caller
		"no_seccomp":      p.Seccomp == 0,         // every system call is open
		"no_pids_limit":   p.PidsLimit == 0,       // or it cannot be seen from inside
		"no_oom_counters": a.cgroup.events == nil, // oom_killed is never told
	} {
		if open {
			p.Gaps = append(p.Gaps, name)
		}
	}
	slices.Sort(p.Gaps)
	return p
}

// noNewPrivs asks the kernel: gVisor has the bit, but does not tell it in /proc/self/status.
func noNewPrivs() bool {
	value, _, errno := syscall.RawSyscall6(syscall.SYS_PRCTL, prGetNoNewPrivs, 0, 0, 0, 0, 0)
	return errno == 0 && value == 1
}

// ownStatus reads /proc/self/status into its fields.
func ownStatus() map[string]string {
	fields := map[string]string{}
	text, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return fields
	}
	for _, line := range strings.Split(string(text), "\n") {
		if name, value, found := strings.Cut(line, ":"); found {
			fields[name] = strings.TrimSpace(value)
		}
	}
	return fields
}
