package main

import (
	"archive/tar"
	"bufio"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net/http"
	"path"
	"strings"
	"syscall"
	"time"
)

const (
	maxTarEntries = 200_000
	maxGetPaths   = 20_000
	maxGetBody    = 16 << 20
)

type putReply struct {
	Files int   `json:"files"`
	Bytes int64 `json:"bytes"`
}

// putTar unpacks a stream below a folder: regular files and folders only, each file by rename.
func (a *agent) putTar(w http.ResponseWriter, r *http.Request) error {
	trusted := false
	switch principal := r.URL.Query().Get("principal"); principal {
	case "", "0":
	case "trusted":
		trusted = true
	default:
		return badRequest("principal must be 0 or trusted")
	}
	if r.ContentLength > maxStreamedBody {
		return tooLarge(maxStreamedBody)
	}
	if err := http.NewResponseController(w).SetReadDeadline(time.Now().Add(streamTimeout)); err != nil {
		return err
	}
	asked := r.URL.Query().Get("path")
	where, failure := a.putPlace(asked, trusted)
	if failure != nil {
		return failure
	}
	var done putReply
	var err error
	unpack := func() { done, err = unpackTar(where, http.MaxBytesReader(w, r.Body, maxStreamedBody), false) }
	if trusted {
		unpack() // the agent's own folder, with its own rights
	} else {
		a.crew.as(a.config.UID(0), unpack)
	}
	if err != nil {
		return tarError(asked, err)
	}
	reply(w, http.StatusOK, done)
	return nil
}

// putPlace is where a tar goes; a trusted one names a place below the trusted folder.
func (a *agent) putPlace(asked string, trusted bool) (place, *Failure) {
	if !trusted {
		return a.paths.locate(asked, true)
	}
	names, failure := split(asked)
	if failure == nil && path.IsAbs(asked) {
		failure = refuse(codeBadPath, fmt.Sprintf("%s: a trusted put names a place below the trusted folder", short(asked)))
	}
	return place{start: a.paths.trusted, names: names, asked: asked}, failure
}

func tarError(asked string, err error) error {
	var over *http.MaxBytesError
	var api *apiError
	switch {
	case errors.As(err, &over):
		return tooLarge(over.Limit)
	case errors.As(err, &api):
		return api
	case errors.Is(err, tar.ErrHeader) || errors.Is(err, io.ErrUnexpectedEOF):
		return badRequest("the body is not a whole tar")
	}
	return refusal(asked, err)
}

func unpackTar(where place, body io.Reader, links bool) (putReply, error) {
	base, err := descend(where.start, where.names, where.asked, true)
	if err != nil {
		return putReply{}, err
	}
	defer syscall.Close(base)
	var done putReply
	archive, buffer := tar.NewReader(bufio.NewReaderSize(body, 64<<10)), make([]byte, 64<<10)
	for entries := 0; ; entries++ {
		head, err := archive.Next()
		if err == io.EOF {
			return done, nil
		}
		if err != nil {
			return done, err
		}
		if entries >= maxTarEntries {
			return done, badRequest("a tar holds at most %d entries", maxTarEntries)
		}
		names, err := tarNames(head, links)
		if err != nil {
			return done, err
		}
		if err := unpackOne(base, names, head, archive, buffer); err != nil {
			return done, err
		}
		if head.Typeflag == tar.TypeReg {
			done.Files++
			done.Bytes += head.Size
		}
	}
}

// tarNames refuses whatever is no plain regular file or folder below the base.
func tarNames(head *tar.Header, links bool) ([]string, error) {
	if head.Typeflag != tar.TypeReg && head.Typeflag != tar.TypeDir && !(links && head.Typeflag == tar.TypeSymlink) {
		return nil, badRequest("%s: only regular files and folders may be in a tar", short(head.Name))
	}
	for key := range head.PAXRecords {
		if strings.HasPrefix(key, "GNU.sparse.") {
			return nil, badRequest("%s: sparse files may not be in a tar", short(head.Name))
		}
	}
	if path.IsAbs(head.Name) {
		return nil, badRequest("%s: names in a tar are relative", short(head.Name))
	}
	names, failure := split(head.Name)
	if failure != nil {
		return nil, badRequest("%s", failure.Message)
	}
	if len(names) == 0 && head.Typeflag != tar.TypeDir {
		return nil, badRequest("a file in the tar has no name")
	}
	return names, nil
}

func unpackOne(base int, names []string, head *tar.Header, content io.Reader, buffer []byte) error {
	mode := uint32(head.Mode) & 0o777
	if head.Typeflag == tar.TypeDir {
		return unpackFolder(base, names, head.Name, mode)
	}
	parent, err := descend(base, names[:len(names)-1], head.Name, true)
	if err != nil {
		return err
	}
	defer syscall.Close(parent)
	if head.Typeflag == tar.TypeSymlink {
		return linkAt(parent, names[len(names)-1], head)
	}
	err = land(parent, names[len(names)-1], mode, func(fd int) error { return copyTo(fd, content, buffer) })
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return refusal(head.Name, err)
	}
	return err
}

// linkAt makes a link, which is never followed here; its target is the tree's own business. It lands by rename, as a file does.
func linkAt(parent int, name string, head *tar.Header) error {
	if head.Linkname == "" || len(head.Linkname) > 4095 || strings.ContainsRune(head.Linkname, 0) {
		return badRequest("%s: a link without a target that can be", short(head.Name))
	}
	temporary := ".tiltyard-" + rand.Text()
	if err := symlinkAt(head.Linkname, parent, temporary); err != nil {
		return refusal(head.Name, err)
	}
	if err := renameAt(parent, temporary, name); err != nil {
		_ = unlinkAt(parent, temporary, 0)
		return refusal(head.Name, err)
	}
	return nil
}

func unpackFolder(base int, names []string, asked string, mode uint32) error {
	folder, err := descend(base, names, asked, true)
	if err != nil {
		return err
	}
	defer syscall.Close(folder)
	if len(names) == 0 {
		return nil // the base itself: not ours to change
	}
	listing, err := openListing(folder)
	if err == nil {
		defer syscall.Close(listing)
		err = again(func() error { return syscall.Fchmod(listing, mode) })
	}
	if err != nil {
		return refusal(asked, err)
	}
	return nil
}

func copyTo(fd int, content io.Reader, buffer []byte) error {
	for {
		count, err := content.Read(buffer)
		if failure := writeFull(fd, buffer[:count]); failure != nil {
			return failure
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

type getRequest struct {
	root  string
	paths []string
	max   int64
}

// getTar sends regular files. Sizes are taken first, so that a refusal is a refusal and not a broken stream; a file that changes
// meanwhile is cut or padded with zeros to the size it had.
func (a *agent) getTar(w http.ResponseWriter, r *http.Request) error {
	request, err := parseGet(w, r)
	if err != nil {
		return err
	}
	where, failure := a.paths.locate(request.root, false)
	if failure != nil {
		return failure
	}
	var outcome error
	a.crew.as(a.config.UID(0), func() { outcome = sendFiles(w, where, request) })
	return outcome
}

func parseGet(w http.ResponseWriter, r *http.Request) (*getRequest, error) {
	raw, err := body(w, r, maxGetBody)
	if err != nil {
		return nil, err
	}
	f, err := parseObject(raw)
	if err != nil {
		return nil, badRequest("%s", err)
	}
	request := &getRequest{
		root: f.required("root"), paths: f.list("paths", 0, maxGetPaths), max: f.integer("max_bytes", 0, 0, maxStreamedBody),
	}
	if err := f.finish(); err != nil {
		return nil, badRequest("%s", err)
	}
	return request, nil
}

func sendFiles(w http.ResponseWriter, where place, request *getRequest) error {
	base, err := openDirectory(where)
	if err != nil {
		return err
	}
	defer syscall.Close(base)
	sizes, err := measure(base, request)
	if err != nil {
		return err
	}
	if err := http.NewResponseController(w).SetWriteDeadline(time.Now().Add(streamTimeout)); err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/x-tar")
	archive, buffer := tar.NewWriter(w), make([]byte, 64<<10)
	for index, name := range request.paths {
		if err := sendFile(archive, base, name, sizes[index], buffer); err != nil {
			logf("get: %v", err)
			panic(http.ErrAbortHandler) // the reply has begun: a broken stream is all that can be said
		}
	}
	if err := archive.Close(); err != nil {
		panic(http.ErrAbortHandler)
	}
	return nil
}

func measure(base int, request *getRequest) ([]int64, error) {
	sizes, total := make([]int64, len(request.paths)), int64(0)
	for index, name := range request.paths {
		err := withFile(base, name, func(_ int, stat *syscall.Stat_t) error {
			sizes[index] = stat.Size
			return nil
		})
		if err != nil {
			return nil, refusal(name, err)
		}
		if total += sizes[index]; total > request.max || sizes[index] > request.max {
			return nil, refuse(codeTooLarge, fmt.Sprintf("the files are larger than %d bytes together", request.max))
		}
	}
	return sizes, nil
}

// withFile opens a regular file below base for reading, unlocking what its owner closed to itself.
func withFile(base int, name string, use func(fd int, stat *syscall.Stat_t) error) error {
	names, failure := split(name)
	if failure != nil {
		return failure
	}
	if len(names) == 0 || path.IsAbs(name) {
		return refuse(codeBadPath, fmt.Sprintf("%s: not a file below the root", short(name)))
	}
	parent, err := descend(base, names[:len(names)-1], name, false)
	if err != nil {
		return err
	}
	defer syscall.Close(parent)
	fd, stat, err := openLocked(parent, names[len(names)-1])
	if err != nil {
		return err
	}
	defer syscall.Close(fd)
	return use(fd, &stat)
}

// openLocked opens a regular file although its owner, who we are, took its read permission away; the mode is put back.
func openLocked(parent int, name string) (int, syscall.Stat_t, error) {
	fd, stat, err := openRegular(parent, name)
	if err != syscall.EACCES {
		return fd, stat, err
	}
	mode := stat.Mode & 0o7777
	handle, failure := openAt(parent, name, oPath|syscall.O_NOFOLLOW, 0)
	if failure != nil {
		return fd, stat, err
	}
	defer syscall.Close(handle)
	var look syscall.Stat_t
	if syscall.Fstat(handle, &look) != nil || mustBe(look.Mode, syscall.S_IFREG) != nil || chmodOpen(handle, mode|0o400) != nil {
		return fd, stat, err
	}
	fd, stat, err = openRegular(parent, name)
	_ = chmodOpen(handle, mode)
	stat.Mode = stat.Mode&syscall.S_IFMT | mode
	return fd, stat, err
}

func sendFile(archive *tar.Writer, base int, name string, size int64, buffer []byte) error {
	opened := false
	err := withFile(base, name, func(fd int, stat *syscall.Stat_t) error {
		opened = true
		return sendContent(archive, name, int64(stat.Mode&0o777), size, buffer, func(part []byte, offset int64) (int, error) {
			return readFull(fd, part, offset)
		})
	})
	if err != nil && !opened { // no file any more: it was cut to nothing, so that the others still come
		return sendContent(archive, name, 0, size, buffer, func([]byte, int64) (int, error) { return 0, nil })
	}
	return err
}

// sendContent makes a member of what `read` gives, with zeros for what it does not.
func sendContent(archive *tar.Writer, name string, mode, size int64, buffer []byte, read func([]byte, int64) (int, error)) error {
	clean, _ := split(name)
	head := &tar.Header{Typeflag: tar.TypeReg, Name: strings.Join(clean, "/"), Size: size, Mode: mode, Format: tar.FormatPAX}
	if err := archive.WriteHeader(head); err != nil {
		return err
	}
	for offset := int64(0); offset < size; {
		part := buffer[:min(int64(len(buffer)), size-offset)]
		count, err := read(part, offset)
		if err != nil {
			return err
		}
		clear(part[count:])
		if _, err := archive.Write(part); err != nil {
			return err
		}
		offset += int64(len(part))
	}
	return nil
}
