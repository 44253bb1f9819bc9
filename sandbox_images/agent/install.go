package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path"
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
	if err := closeToOthers(*to); err != nil {
		return err
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

// closeToOthers: a node mounts an empty folder with mode 0777. Where it is another's, as root's for a pod without root, it stays so.
func closeToOthers(folder string) error {
	info, err := os.Stat(folder)
	if err != nil || ownerOf(info) != os.Getuid() {
		return err
	}
	return os.Chmod(folder, 0o755)
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
		if err := makeFolder(name, uid); err != nil {
			return fmt.Errorf("folder %s: %w", name, err)
		}
	}
	return nil
}

// makeFolder needs CHOWN and no right over what is no longer root's. A link that stands there is not followed.
func makeFolder(name string, uid int) error {
	if !path.IsAbs(name) || path.Clean(name) != name || name == "/" {
		return errors.New("not a clean absolute path")
	}
	if err := os.MkdirAll(name, 0o755); err != nil {
		return err
	}
	info, err := os.Lstat(name)
	if err != nil {
		return err
	}
	asRoot := os.Getuid() == 0
	if asRoot && uid != 0 && info.IsDir() && ownerOf(info) == uid {
		return nil // of an earlier try: no longer ours to change
	}
	folder, err := os.OpenFile(name, os.O_RDONLY|syscall.O_DIRECTORY|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer folder.Close()
	mode := os.FileMode(0o755)
	if path.Base(name) == "tmp" {
		mode = 0o777 | os.ModeSticky
	}
	if err := folder.Chmod(mode); err != nil || !asRoot {
		return err
	}
	return folder.Chown(uid, uid)
}

func ownerOf(info os.FileInfo) int {
	if stat, ok := info.Sys().(*syscall.Stat_t); ok {
		return int(stat.Uid)
	}
	return -1
}
