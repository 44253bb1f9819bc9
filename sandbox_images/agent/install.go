package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

const installedName, privateName = "tiltyard-agent", "private"

// install brings this program and its configuration into a pod, as the pod's init container, and makes the folders that commands own. It may
// run again after it was interrupted.
func install(arguments []string) error {
	set := flag.NewFlagSet("install", flag.ContinueOnError)
	to := set.String("to", "", "folder for the program and its configuration")
	config := set.String("config", "", "the configuration itself")
	uid := set.Int("uid", 0, "owner of the folders")
	folders := set.String("folders", "", "absolute paths, comma between; one named tmp is everybody's")
	if err := set.Parse(arguments); err != nil {
		return err
	}
	if *to == "" || *config == "" || set.NArg() != 0 {
		return errors.New("usage: tiltyard-agent install --to FOLDER --config JSON [--uid UID] [--folders A,B]")
	}
	if _, err := parseObject([]byte(*config)); err != nil {
		return fmt.Errorf("config: %w", err)
	}
	if err := os.MkdirAll(*to, 0o755); err != nil {
		return err
	}
	if os.Getuid() == 0 {
		if err := os.Chmod(*to, 0o755); err != nil {
			return err
		}
	}
	if err := placeFile(filepath.Join(*to, "config.json"), 0o644, strings.NewReader(*config)); err != nil {
		return err
	}
	// The cluster mounts a file of the node's here that a container may write its last words to: out of the commands' reach.
	if err := os.MkdirAll(filepath.Join(*to, privateName), 0o700); err != nil {
		return err
	}
	self, err := os.Open("/proc/self/exe")
	if err != nil {
		return err
	}
	defer self.Close()
	if err := placeFile(filepath.Join(*to, installedName), 0o755, self); err != nil {
		return err
	}
	return makeFolders(*folders, *uid)
}

// placeFile writes beside the name and renames: what is there is whole.
func placeFile(name string, mode os.FileMode, content io.Reader) error {
	file, err := os.OpenFile(name+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, mode)
	if err != nil {
		return err
	}
	_, err = io.Copy(file, content)
	if failure := file.Close(); err == nil {
		err = failure
	}
	if err == nil {
		err = os.Chmod(name+".new", mode)
	}
	if err != nil {
		return err
	}
	return os.Rename(name+".new", name)
}

func makeFolders(list string, uid int) error {
	for _, name := range strings.FieldsFunc(list, func(r rune) bool { return r == ',' }) {
		if err := os.MkdirAll(name, 0o755); err != nil {
			return err
		}
		mode := os.FileMode(0o755)
		if filepath.Base(name) == "tmp" {
			mode = 0o777 | os.ModeSticky
		}
		owned := os.Getuid() != 0
		if info, err := os.Stat(name); err == nil && !owned {
			owned = ownerOf(info) == uid
		}
		if owned && os.Getuid() == 0 {
			continue // of an earlier try: no longer ours to change
		}
		if err := os.Chmod(name, mode); err != nil {
			return err
		}
		if !owned {
			if err := os.Chown(name, uid, uid); err != nil {
				return err
			}
		}
	}
	return nil
}

func ownerOf(info os.FileInfo) int {
	if stat, ok := info.Sys().(*syscall.Stat_t); ok {
		return int(stat.Uid)
	}
	return -1
}
