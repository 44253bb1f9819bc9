package main

import (
	"bytes"
	"encoding/binary"
	"syscall"
)

// Kinds of directory entries as the kernel writes them (d_type).
const (
	dtUnknown = 0
	dtFifo    = 1
	dtDir     = 4
	dtRegular = 8
	dtSymlink = 10
)

// eachEntry calls visit for every name in the open directory but . and .., in the file system's own order, until it returns an error.
func eachEntry(dir int, visit func(name string, kind byte) error) error {
	buffer := make([]byte, 16<<10)
	for {
		var count int
		err := again(func() (err error) {
			count, err = syscall.ReadDirent(dir, buffer)
			return err
		})
		if err != nil || count == 0 {
			return err
		}
		if err := eachRecord(buffer[:count], visit); err != nil {
			return err
		}
	}
}

// eachRecord walks linux_dirent64: inode 8, offset 8, record length 2, type 1, name with its NUL.
func eachRecord(records []byte, visit func(name string, kind byte) error) error {
	for len(records) >= 19 {
		length := int(binary.NativeEndian.Uint16(records[16:18]))
		if length < 19 || length > len(records) {
			return syscall.EIO
		}
		name, _, _ := bytes.Cut(records[19:length], []byte{0})
		kind := records[18]
		records = records[length:]
		if text := string(name); text != "." && text != ".." {
			if err := visit(text, kind); err != nil {
				return err
			}
		}
	}
	return nil
}
