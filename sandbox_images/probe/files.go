package main

import (
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

const mayWrite = 2

// everywhere walks the box's files, kernel's own folders left out.
func everywhere(visit func(path string, entry fs.DirEntry)) error {
	return filepath.WalkDir("/", func(path string, entry fs.DirEntry, err error) error {
		if entry == nil || err != nil {
			return nil
		}
		if path == "/proc" || path == "/sys" {
			return fs.SkipDir
		}
		visit(path, entry)
		return nil
	})
}

// writable prints folders in which a file can be made, and regular files that are mounts of their own and can be written.
func writable([]string) error {
	err := everywhere(func(path string, entry fs.DirEntry) {
		if !entry.IsDir() || syscall.Access(path, mayWrite) != nil {
			return
		}
		probe := filepath.Join(path, ".tiltyard-probe")
		file, err := os.OpenFile(probe, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
		if err != nil {
			return
		}
		file.Close()
		os.Remove(probe)
		say(path)
	})
	if err != nil {
		return err
	}
	return eachMount(func(target, _, _ string) {
		if info, err := os.Lstat(target); err == nil && info.Mode().IsRegular() && syscall.Access(target, mayWrite) == nil {
			say(target)
		}
	})
}

func eachMount(visit func(target, kind, options string)) error {
	data, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return err
	}
	for _, line := range strings.Split(strings.TrimSpace(string(data)), "\n") {
		if words := strings.Fields(line); len(words) > 3 {
			visit(words[1], words[2], words[3])
		}
	}
	return nil
}

// mounts prints TARGET, TYPE, OPTIONS.
func mounts([]string) error {
	return eachMount(func(target, kind, options string) { say(target, kind, options) })
}

// readable prints those of the paths that can be read and hold something.
func readable(paths []string) error {
	for _, path := range paths {
		if names, err := os.ReadDir(path); err == nil {
			if len(names) > 0 {
				say(path)
			}
			continue
		}
		file, err := os.Open(path)
		if err != nil {
			continue
		}
		if count, _ := file.Read(make([]byte, 1)); count > 0 {
			say(path)
		}
		file.Close()
	}
	return nil
}

// switches prints those of the paths that can be opened for writing.
func switches(paths []string) error {
	for _, path := range paths {
		if file, err := os.OpenFile(path, os.O_WRONLY, 0); err == nil {
			file.Close()
			say(path)
		}
	}
	return nil
}

// devices prints names in /dev and below that are no folders.
func devices([]string) error {
	return filepath.WalkDir("/dev", func(path string, entry fs.DirEntry, err error) error {
		if err == nil && !entry.IsDir() {
			say(strings.TrimPrefix(path, "/dev/"), entry.Type().String())
		}
		return nil
	})
}

// setuid prints programs that would run as another user.
func setuid([]string) error {
	return everywhere(func(path string, entry fs.DirEntry) {
		if info, err := entry.Info(); err == nil && info.Mode()&(fs.ModeSetuid|fs.ModeSetgid) != 0 && info.Mode().IsRegular() {
			say(path)
		}
	})
}

// sockets prints unix sockets that can be connected to.
func sockets([]string) error {
	return everywhere(func(path string, entry fs.DirEntry) {
		if entry.Type()&fs.ModeSocket == 0 {
			return
		}
		if connection, err := net.DialTimeout("unix", path, patience); err == nil {
			connection.Close()
			say(path)
		}
	})
}

// listen serves a unix socket until it is killed.
func listen(arguments []string) error {
	server, err := net.Listen("unix", arguments[0])
	if err != nil {
		return err
	}
	armed()
	for {
		connection, err := server.Accept()
		if err != nil {
			return err
		}
		connection.Close()
	}
}

// sparse makes a file of that many bytes that holds nothing, or as large a one as it may; prints its size.
func sparse(arguments []string) error {
	size, err := number(arguments[1])
	if err != nil {
		return err
	}
	file, err := os.Create(arguments[0])
	if err != nil {
		return err
	}
	defer file.Close()
	for ; size > 0; size /= 2 {
		if err = file.Truncate(int64(size)); err == nil {
			break
		}
	}
	say(size)
	return err
}

const (
	renameExchange = 2
	racersFolder   = ".tiltyard-race"
)

// race swaps two names over and over: in one step where the kernel can, by three renames elsewhere. Prints how often.
func race(arguments []string) error {
	from, to := arguments[0], arguments[1]
	span, err := seconds(arguments[2])
	if err != nil {
		return err
	}
	swaps := 0
	for end := time.Now().Add(span); time.Now().Before(end); swaps++ {
		if err := exchange(from, to); err == nil {
			continue
		}
		for _, step := range [][2]string{{from, from + racersFolder}, {to, from}, {from + racersFolder, to}} {
			if err := syscall.Rename(step[0], step[1]); err != nil {
				return err
			}
		}
	}
	say(swaps)
	return nil
}
