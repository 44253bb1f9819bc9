package main

import (
	"crypto/ed25519"
	"fmt"
	"os"
	"path"
	"strings"
)

// Config is the file the host writes before the box starts. Nothing in it is secret.
type Config struct {
	Socket       string
	StateDir     string
	TrustedDir   string
	Workspace    string
	Home         string
	Tmp          string
	UIDBase      int
	UIDCount     int
	OneUID       bool
	AllowRoot    bool
	Env          map[string]string
	JournalLimit int64
	SpareThreads int

	Listen        string // address and port; empty: the unix socket
	Box           string
	PublicKey     ed25519.PublicKey
	AllowLoopback bool
	Limits        map[string]int64
}

const maxConfigBytes = 1 << 20

// loadConfig refuses unknown fields and values that cannot be honoured.
func loadConfig(file string) (*Config, error) {
	info, err := os.Stat(file)
	if err != nil {
		return nil, err
	}
	if info.Size() > maxConfigBytes {
		return nil, fmt.Errorf("%s is larger than %d bytes", file, maxConfigBytes)
	}
	raw, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	return parseConfig(raw)
}

func parseConfig(raw []byte) (*Config, error) {
	fields, err := parseObject(raw)
	if err != nil {
		return nil, err
	}
	mode := fields.text("mode", "split")
	config := &Config{
		Socket:       fields.text("socket", "/run/tiltyard/agent.sock"),
		StateDir:     fields.text("state_dir", "/run/tiltyard/state"),
		TrustedDir:   fields.text("trusted_dir", "/run/tiltyard/trusted"),
		Workspace:    fields.text("workspace", "/workspace"),
		Home:         fields.text("home", "/home/agent"),
		Tmp:          fields.text("tmp", "/tmp"),
		UIDBase:      int(fields.integer("uid_base", 0, 0, 1<<32-3)),
		UIDCount:     int(fields.integer("uid_count", 1, 1, 65536)),
		OneUID:       mode == "one_uid",
		AllowRoot:    fields.flag("allow_root_exec", false),
		Env:          fields.table("env"),
		JournalLimit: fields.integer("journal_limit_bytes", 256<<20, 4<<20, 1<<40),
		SpareThreads: int(fields.integer("spare_threads", 16, 0, 256)),
	}
	config.network(fields)
	if err := fields.finish(); err != nil {
		return nil, err
	}
	if mode != "split" && mode != "one_uid" {
		return nil, fmt.Errorf("mode must be split or one_uid, not %q", mode)
	}
	return config, config.check()
}

// network reads what concerns boxes that are reached over one.
func (c *Config) network(fields *fields) {
	c.Listen, c.Box = fields.text("listen", ""), fields.text("box", "")
	c.PublicKey = fields.blob("public_key_b64", false)
	c.AllowLoopback = fields.flag("allow_loopback", false)
	c.Limits = map[string]int64{}
	if raw, given := fields.take("rlimits"); given {
		limits, err := parseObject(raw)
		if err != nil {
			fields.fail("rlimits", "an object")
			return
		}
		for _, name := range []string{"nofile", "nproc", "fsize_bytes"} {
			if value := limits.integer(name, 0, 0, 1<<53); value > 0 {
				c.Limits[name] = value
			}
		}
		if err := limits.finish(); err != nil {
			fields.fail("rlimits", err.Error())
		}
	}
}

func (c *Config) checkNetwork() error {
	if c.Listen == "" {
		if c.Box != "" || len(c.PublicKey) > 0 || c.AllowLoopback {
			return fmt.Errorf("box, public_key_b64 and allow_loopback stand beside listen")
		}
		return nil
	}
	if c.Box == "" || len(c.PublicKey) != ed25519.PublicKeySize {
		return fmt.Errorf("listen needs the box's name and a public key of %d bytes", ed25519.PublicKeySize)
	}
	return nil
}

func (c *Config) check() error {
	if err := c.checkNetwork(); err != nil {
		return err
	}
	for name, value := range map[string]string{
		"socket": c.Socket, "state_dir": c.StateDir, "trusted_dir": c.TrustedDir,
		"workspace": c.Workspace, "home": c.Home, "tmp": c.Tmp,
	} {
		if !path.IsAbs(value) || path.Clean(value) != value || value == "/" || strings.ContainsRune(value, 0) {
			return fmt.Errorf("%s must be a clean absolute path, not %q", name, value)
		}
	}
	if c.OneUID {
		c.UIDBase, c.UIDCount = os.Getuid(), 1
		return nil
	}
	if os.Getuid() != 0 {
		return fmt.Errorf("mode split needs the agent to start as root; use one_uid where no second uid is granted")
	}
	if c.UIDBase == 0 {
		return fmt.Errorf("uid_base must be the uid of the box's commands, and not 0")
	}
	return nil
}

// UID is the uid and gid of principal k.
func (c *Config) UID(principal int) int { return c.UIDBase + principal }
