package main

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"
	"syscall"
	"unicode/utf8"
)

// maxEditBytes bounds the file an edit takes into memory.
const maxEditBytes = 8 << 20

type readResult struct {
	Type   string  `json:"type"`
	Data   []byte  `json:"data_b64"`
	Size   int64   `json:"size_bytes"`
	EOF    bool    `json:"eof"`
	SHA256 *string `json:"sha256"`
}

type writeResult struct {
	Type    string `json:"type"`
	Size    int64  `json:"size_bytes"`
	Created bool   `json:"created"`
	SHA256  string `json:"sha256"`
}

type editResult struct {
	Type     string `json:"type"`
	Replaced int    `json:"replaced"`
	Size     int64  `json:"size_bytes"`
	Line     int    `json:"line"`
}

func hexHash(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

func (p *paths) read(op *readOp) (any, error) {
	where, failure := p.locate(op.Path, false)
	if failure != nil {
		return nil, failure
	}
	parent, name, err := openParent(where, false)
	if err != nil {
		return nil, err
	}
	defer syscall.Close(parent)
	fd, stat, err := openRegular(parent, name)
	if err != nil {
		return nil, err
	}
	defer syscall.Close(fd)
	buffer := make([]byte, min(op.Limit, max(stat.Size-op.Offset, 4096)))
	count, err := readFull(fd, buffer, op.Offset)
	if err != nil {
		return nil, err
	}
	end := op.Offset + int64(count)
	result := &readResult{Type: "read", Data: buffer[:count], Size: stat.Size, EOF: end >= stat.Size}
	if count > 0 { // the file may have grown since; an offset beyond its end says nothing of its size
		result.Size = max(stat.Size, end)
	}
	if op.Offset == 0 && result.EOF {
		whole := hexHash(result.Data)
		result.SHA256 = &whole
	}
	return result, nil
}

// target is what stands under the name before a write.
type target struct {
	exists bool
	mode   uint32
	size   int64
}

func lookAtTarget(parent int, name string) (target, error) {
	var stat syscall.Stat_t
	err := statAt(parent, name, &stat)
	if err == syscall.ENOENT {
		return target{mode: 0o644}, nil
	}
	if err != nil {
		return target{}, err
	}
	return target{exists: true, mode: stat.Mode & 0o777, size: stat.Size}, mustBe(stat.Mode, syscall.S_IFREG)
}

func (p *paths) write(op *writeOp) (any, error) {
	where, failure := p.locate(op.Path, true)
	if failure != nil {
		return nil, failure
	}
	parent, name, err := openParent(where, op.Parents)
	if err != nil {
		return nil, err
	}
	defer syscall.Close(parent)
	before, err := lookAtTarget(parent, name)
	if err != nil {
		return nil, err
	}
	if err := expect(op, parent, name, before.exists); err != nil {
		return nil, err
	}
	mode := before.mode
	if op.Mode != nil {
		mode = uint32(*op.Mode)
	}
	if err := replace(parent, name, op.Data, mode); err != nil {
		return nil, err
	}
	return &writeResult{Type: "write", Size: int64(len(op.Data)), Created: !before.exists, SHA256: hexHash(op.Data)}, nil
}

// expect compares what is there with what the writer believes is there.
func expect(op *writeOp, parent int, name string, exists bool) error {
	switch {
	case op.Expected == nil:
		return nil
	case *op.Expected == "absent" && exists:
		return refuse(codeExists, fmt.Sprintf("%s: exists already", short(op.Path)))
	case *op.Expected == "absent":
		return nil
	case !exists:
		return syscall.ENOENT
	}
	fd, _, err := openRegular(parent, name)
	if err != nil {
		return err
	}
	defer syscall.Close(fd)
	found, err := hashFile(fd, make([]byte, 64<<10))
	if err != nil {
		return err
	}
	if hex.EncodeToString(found[:]) != *op.Expected {
		return refuse(codeHashMismatch, fmt.Sprintf("%s: the file is not what it was expected to be", short(op.Path)))
	}
	return nil
}

// hashFile reads from the start to the end as it is met.
func hashFile(fd int, buffer []byte) (digest, error) {
	hash := sha256.New()
	for offset := int64(0); ; {
		count, err := readFull(fd, buffer, offset)
		if err != nil {
			return digest{}, err
		}
		_, _ = hash.Write(buffer[:count])
		if offset += int64(count); count < len(buffer) {
			return digest(hash.Sum(nil)), nil
		}
	}
}

// replace puts the data in place by rename: whoever reads sees the old file or the new one, and a symlink that was slipped in
// under the name is itself replaced, never followed.
func replace(parent int, name string, data []byte, mode uint32) error {
	return land(parent, name, mode, func(fd int) error { return writeFull(fd, data) })
}

// land writes a new file under a name of its own and renames it.
func land(parent int, name string, mode uint32, fill func(fd int) error) error {
	temporary := ".tiltyard-" + rand.Text()
	fd, err := openAt(parent, temporary, syscall.O_WRONLY|syscall.O_CREAT|syscall.O_EXCL|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	err = fill(fd)
	if err == nil {
		err = again(func() error { return syscall.Fchmod(fd, mode) })
	}
	if failure := syscall.Close(fd); err == nil && failure != syscall.EINTR {
		err = failure
	}
	if err == nil {
		err = renameAt(parent, temporary, name)
	}
	if err != nil {
		_ = unlinkAt(parent, temporary, 0)
	}
	return err
}

func (p *paths) edit(op *editOp) (any, error) {
	if op.Old == "" {
		return nil, refuse(codeNoMatch, "the text to replace is empty")
	}
	where, failure := p.locate(op.Path, true)
	if failure != nil {
		return nil, failure
	}
	parent, name, err := openParent(where, false)
	if err != nil {
		return nil, err
	}
	defer syscall.Close(parent)
	fd, stat, err := openRegular(parent, name)
	if err != nil {
		return nil, err
	}
	defer syscall.Close(fd)
	before, err := readText(fd, stat.Size, op.Path)
	if err != nil {
		return nil, err
	}
	after, result, err := substitute(before, op)
	if err != nil {
		return nil, err
	}
	return result, replace(parent, name, after, stat.Mode&0o777)
}

func readText(fd int, size int64, path string) ([]byte, error) {
	if size > maxEditBytes {
		return nil, refuse(codeTooLarge, fmt.Sprintf("%s: larger than the %d bytes that can be edited", short(path), maxEditBytes))
	}
	data := make([]byte, size)
	count, err := readFull(fd, data, 0)
	if err != nil {
		return nil, err
	}
	if !utf8.Valid(data[:count]) {
		return nil, refuse(codeNotText, fmt.Sprintf("%s: not UTF-8 text", short(path)))
	}
	return data[:count], nil
}

// substitute is the edit itself, on values.
func substitute(before []byte, op *editOp) ([]byte, *editResult, error) {
	found := bytes.Count(before, []byte(op.Old))
	if found == 0 {
		return nil, nil, refuse(codeNoMatch, fmt.Sprintf("%s: the text to replace is not in the file", short(op.Path)))
	}
	if op.Expected != nil && int64(found) != *op.Expected {
		return nil, nil, refuse(codeManyMatches,
			fmt.Sprintf("%s: the text to replace is in the file %d times, not %d", short(op.Path), found, *op.Expected))
	}
	if size := int64(len(before)) + int64(found)*int64(len(op.New)-len(op.Old)); size > 2*maxEditBytes {
		return nil, nil, refuse(codeTooLarge, fmt.Sprintf("%s: would be larger than %d bytes", short(op.Path), 2*maxEditBytes))
	}
	after := bytes.ReplaceAll(before, []byte(op.Old), []byte(op.New))
	line := 1 + strings.Count(string(before[:bytes.Index(before, []byte(op.Old))]), "\n")
	return after, &editResult{Type: "edit", Replaced: found, Size: int64(len(after)), Line: line}, nil
}
