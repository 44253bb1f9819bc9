package main

import (
	"errors"
	"fmt"
	"log"
	"syscall"
)

// Failure is a refused operation: a result like any other, kept and replayed, so its message never varies.
type Failure struct {
	Type    string `json:"type"`
	Code    string `json:"code"`
	Message string `json:"message"`
}

func (f *Failure) Error() string { return f.Message }

const (
	codeNotFound      = "not_found"
	codeNotADirectory = "not_a_directory"
	codeIsDirectory   = "is_directory"
	codeNotRegular    = "not_regular"
	codeSymlink       = "symlink"
	codeBadPath       = "bad_path"
	codeOutside       = "outside"
	codePermission    = "permission"
	codeTooLarge      = "too_large"
	codeExists        = "exists"
	codeHashMismatch  = "hash_mismatch"
	codeNoMatch       = "no_match"
	codeManyMatches   = "many_matches"
	codeBadPattern    = "bad_pattern"
	codeNoSpace       = "no_space"
	codeNotText       = "not_text"
	codeCannotStart   = "cannot_start"
	codeIO            = "io"
)

func refuse(code, message string) *Failure {
	return &Failure{Type: "failure", Code: code, Message: message}
}

// refusal turns an error met at `path` into a Failure.
func refusal(path string, err error) *Failure {
	var failure *Failure
	if errors.As(err, &failure) {
		return failure
	}
	var errno syscall.Errno
	if !errors.As(err, &errno) {
		return refuse(codeIO, fmt.Sprintf("%s: input or output error", short(path)))
	}
	code, text := codeIO, "input or output error"
	switch errno {
	case syscall.ENOENT:
		code, text = codeNotFound, "no such file or directory"
	case syscall.ENOTDIR:
		code, text = codeNotADirectory, "not a directory"
	case syscall.EISDIR:
		code, text = codeIsDirectory, "is a directory"
	case syscall.ELOOP:
		code, text = codeSymlink, "is a symlink, which is not followed"
	case syscall.EACCES, syscall.EPERM, syscall.EROFS:
		code, text = codePermission, "permission denied"
	case syscall.ENOSPC, syscall.EDQUOT:
		code, text = codeNoSpace, "no space is left in the box"
	case syscall.EFBIG:
		code, text = codeTooLarge, "too large"
	case syscall.EEXIST, syscall.ENOTEMPTY:
		code, text = codeExists, "exists already"
	case syscall.ENAMETOOLONG, syscall.EINVAL, syscall.EILSEQ:
		code, text = codeBadPath, "not a usable name"
	case syscall.ENXIO, syscall.ENODEV:
		code, text = codeNotRegular, "not a regular file"
	}
	return refuse(code, fmt.Sprintf("%s: %s", short(path), text))
}

// short keeps messages readable; paths may be 4 KiB.
func short(path string) string {
	if len(path) <= 300 {
		return path
	}
	return string(trimEnd([]byte(path[:300]))) + "..."
}

// logf writes to the box's log; nothing that commands choose goes there unquoted.
func logf(format string, arguments ...any) { log.Printf(format, arguments...) }
