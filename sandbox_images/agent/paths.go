package main

import (
	"fmt"
	"path"
	"strings"
	"syscall"
	"unicode/utf8"
)

// paths decides where a path of an operation may lead, and opens the folders on the way by descriptor.
type paths struct {
	config *Config
	// Roots were opened before any command ran; a symlink of the image on the way to them is the image's own affair.
	roots []root
	slash int
	// trusted is the agent's own folder, for files that commands may read and not write.
	trusted int
	closed  []string // not even for reading
}

type root struct {
	name string
	fd   int
}

// place is a checked path: a folder to start from and plain names below it.
type place struct {
	start int
	names []string
	asked string
}

func openPaths(config *Config) (*paths, error) {
	p := &paths{config: config}
	fd, err := openAt(-100, "/", oPath|syscall.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	p.slash = fd
	for _, name := range []string{config.Workspace, config.Home, config.Tmp} {
		fd, err := openAt(-100, name, oPath|syscall.O_DIRECTORY, 0)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		p.roots = append(p.roots, root{name: name, fd: fd})
	}
	if p.trusted, err = openAt(-100, config.TrustedDir, oPath|syscall.O_DIRECTORY, 0); err != nil {
		return nil, fmt.Errorf("%s: %w", config.TrustedDir, err)
	}
	p.closed = []string{"/proc", "/sys", "/dev", config.StateDir, path.Dir(config.Socket), config.TrustedDir}
	return p, nil
}

// split checks the text of a path: no NUL, no "..", bounded. Empty names and "." say nothing.
func split(text string) ([]string, *Failure) {
	switch {
	case text == "":
		return nil, refuse(codeBadPath, "the path is empty")
	case len(text) > maxPathBytes:
		return nil, refuse(codeBadPath, fmt.Sprintf("the path is longer than %d bytes", maxPathBytes))
	case strings.ContainsRune(text, 0) || !utf8.ValidString(text):
		return nil, refuse(codeBadPath, "the path holds a NUL byte or is not UTF-8")
	}
	var names []string
	for _, name := range strings.Split(text, "/") {
		switch {
		case name == "" || name == ".":
		case name == "..":
			return nil, refuse(codeBadPath, fmt.Sprintf("%s: .. is not allowed in a path", short(text)))
		case len(name) > 255:
			return nil, refuse(codeBadPath, fmt.Sprintf("%s: a name is longer than 255 bytes", short(text)))
		default:
			names = append(names, name)
		}
	}
	return names, nil
}

// locate decides where the walk begins. Writing stays below workspace, home and tmp; reading may go anywhere but the closed places.
func (p *paths) locate(text string, writing bool) (place, *Failure) {
	names, failure := split(text)
	if failure != nil {
		return place{}, failure
	}
	if text[0] != '/' {
		return place{start: p.roots[0].fd, names: names, asked: text}, nil
	}
	full := "/" + strings.Join(names, "/")
	for _, r := range p.roots {
		if below, inside := under(full, r.name); inside {
			return place{start: r.fd, names: below, asked: text}, nil
		}
	}
	if writing {
		return place{}, refuse(codeOutside, fmt.Sprintf("%s: files are written below %s, %s and %s only",
			short(text), p.config.Workspace, p.config.Home, p.config.Tmp))
	}
	for _, closed := range p.closed {
		if _, inside := under(full, closed); inside {
			return place{}, refuse(codeOutside, fmt.Sprintf("%s: %s is closed to file operations", short(text), closed))
		}
	}
	return place{start: p.slash, names: names, asked: text}, nil
}

// under returns the names of a clean absolute path below root.
func under(full, root string) ([]string, bool) {
	if full == root {
		return nil, true
	}
	rest, inside := strings.CutPrefix(full, root+"/")
	if !inside {
		return nil, false
	}
	return strings.Split(rest, "/"), true
}

// directory is where a command starts; it may go anywhere by itself, so this is no walk.
func (p *paths) directory(cwd string) string {
	if path.IsAbs(cwd) {
		return cwd
	}
	return path.Join(p.config.Workspace, cwd)
}

// openDirectory walks to a folder, component by component, never through a symlink. The caller closes the descriptor, which is O_PATH.
func openDirectory(where place) (int, error) {
	return descend(where.start, where.names, where.asked, false)
}

// openParent walks to the folder that holds the last name. With `make`, missing folders are made.
func openParent(where place, makeMissing bool) (parent int, name string, err error) {
	if len(where.names) == 0 {
		return -1, "", refuse(codeIsDirectory, fmt.Sprintf("%s: is a directory", short(where.asked)))
	}
	last := len(where.names) - 1
	parent, err = descend(where.start, where.names[:last], where.asked, makeMissing)
	return parent, where.names[last], err
}

func descend(start int, names []string, asked string, makeMissing bool) (int, error) {
	current, err := duplicate(start)
	if err != nil {
		return -1, refusal(asked, err)
	}
	for _, name := range names {
		next, err := step(current, name, makeMissing)
		_ = syscall.Close(current)
		if err != nil {
			return -1, refusal(asked, err)
		}
		current = next
	}
	return current, nil
}

// duplicate needs no right on the folder, as reopening it would.
func duplicate(fd int) (int, error) {
	copied, _, errno := syscall.Syscall(syscall.SYS_FCNTL, uintptr(fd), syscall.F_DUPFD_CLOEXEC, 3)
	return int(copied), asError(errno)
}

// step opens one component. O_PATH|O_NOFOLLOW opens a symlink itself, so what it is gets looked at: some kernels (gVisor) follow
// a symlink that is opened with O_NOFOLLOW|O_DIRECTORY.
func step(dir int, name string, makeMissing bool) (int, error) {
	fd, err := openAt(dir, name, oPath|syscall.O_NOFOLLOW, 0)
	if err == syscall.ENOENT && makeMissing {
		if err = syscall.Mkdirat(dir, name, 0o755); err != nil && err != syscall.EEXIST {
			return -1, err
		}
		fd, err = openAt(dir, name, oPath|syscall.O_NOFOLLOW, 0)
	}
	if err != nil {
		return -1, err
	}
	var stat syscall.Stat_t
	if err = syscall.Fstat(fd, &stat); err == nil {
		err = mustBe(stat.Mode, syscall.S_IFDIR)
	}
	if err != nil {
		_ = syscall.Close(fd)
		return -1, err
	}
	return fd, nil
}

// mustBe is nil where the mode is of the wanted type (S_IFDIR or S_IFREG), else the error that says what it is.
func mustBe(mode, wanted uint32) error {
	kind := mode & syscall.S_IFMT
	switch {
	case kind == wanted:
		return nil
	case kind == syscall.S_IFLNK:
		return syscall.ELOOP
	case wanted == syscall.S_IFDIR:
		return syscall.ENOTDIR
	case kind == syscall.S_IFDIR:
		return syscall.EISDIR
	}
	return syscall.ENXIO
}

// openRegular opens a regular file for reading: looked at before (a FIFO or device is never touched) and after (what it then is).
func openRegular(parent int, name string) (fd int, stat syscall.Stat_t, err error) {
	if err = statAt(parent, name, &stat); err != nil {
		return -1, stat, err
	}
	if err = mustBe(stat.Mode, syscall.S_IFREG); err != nil {
		return -1, stat, err
	}
	fd, err = openAt(parent, name, syscall.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK|syscall.O_NOCTTY, 0)
	if err != nil {
		return -1, stat, err
	}
	if err = syscall.Fstat(fd, &stat); err == nil {
		err = mustBe(stat.Mode, syscall.S_IFREG)
	}
	if err != nil {
		_ = syscall.Close(fd)
		return -1, stat, err
	}
	return fd, stat, nil
}

// openListing reopens an O_PATH folder for reading its names.
func openListing(dir int) (int, error) {
	return openAt(dir, ".", syscall.O_RDONLY|syscall.O_DIRECTORY, 0)
}
