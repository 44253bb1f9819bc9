package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"sync"
	"syscall"
)

// journal is an append-only file of records: length and CRC-32 of the payload (little-endian, 4 bytes each), then the payload,
// whose first byte is its kind. Never synced: the host's death must be survived, not the machine's. Results live here and not
// in memory; what was acknowledged gives its blocks back by a hole.
type journal struct {
	mu    sync.Mutex
	file  *os.File
	end   int64
	holes int64
	limit int64
	solid bool // no holes can be made here
}

// ref is where a record's data lies.
type ref struct {
	offset int64
	size   int
}

const (
	recordCall      = 'C' // a call's header without its arguments
	recordArguments = 'A'
	recordBegin     = 'B' // an operation is about to run
	recordResult    = 'R'
	recordAck       = 'T'

	recordOverhead = 9
	journalName    = "journal"
)

var (
	errJournalFull   = errors.New("the journal reached its limit")
	errJournalBroken = errors.New("a journal record is damaged")
	errLostBoot      = errors.New("an agent served this box before")
)

// openJournal makes the folder (0700) and the file. errLostBoot: there is one already.
func openJournal(folder string, limit int64) (*journal, error) {
	if err := os.MkdirAll(folder, 0o700); err != nil {
		return nil, err
	}
	if err := os.Chmod(folder, 0o700); err != nil {
		return nil, err
	}
	file, err := os.OpenFile(filepath.Join(folder, journalName), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, os.ErrExist) {
		return nil, errLostBoot
	}
	if err != nil {
		return nil, err
	}
	return &journal{file: file, limit: limit}, nil
}

// append writes one record whole or not at all.
func (j *journal) append(kind byte, data []byte) (ref, error) {
	record := make([]byte, recordOverhead, recordOverhead+len(data))
	record[8] = kind
	record = append(record, data...)
	binary.LittleEndian.PutUint32(record[0:], uint32(len(data)+1))
	binary.LittleEndian.PutUint32(record[4:], crc32.ChecksumIEEE(record[8:]))
	j.mu.Lock()
	defer j.mu.Unlock()
	if kind != recordAck && j.end-j.holes+int64(len(record)) > j.limit { // an acknowledgement is what makes room
		return ref{}, errJournalFull
	}
	if _, err := j.file.WriteAt(record, j.end); err != nil {
		_ = j.file.Truncate(j.end)
		return ref{}, fmt.Errorf("%w: %w", errJournalFull, err)
	}
	where := ref{offset: j.end + recordOverhead, size: len(data)}
	j.end += int64(len(record))
	return where, nil
}

// read returns the data of a record after checking it.
func (j *journal) read(where ref) ([]byte, error) {
	record := make([]byte, recordOverhead+where.size)
	if _, err := j.file.ReadAt(record, where.offset-recordOverhead); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	if int(binary.LittleEndian.Uint32(record)) != where.size+1 ||
		binary.LittleEndian.Uint32(record[4:]) != crc32.ChecksumIEEE(record[8:]) {
		return nil, errJournalBroken
	}
	return record[recordOverhead:], nil
}

// forget gives a record's blocks back where the file system can; it is never read again.
func (j *journal) forget(where ref) {
	if where.size < 4096 {
		return // less than a block
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	mode := uint32(fallocKeepSize | fallocPunchHole)
	if err := again(func() error { return syscall.Fallocate(int(j.file.Fd()), mode, where.offset, int64(where.size)) }); err == nil {
		j.holes += int64(where.size)
	} else {
		j.solid = true
	}
}

// nothingKept begins the file again where no holes can be made (gVisor): no record of it will be read.
func (j *journal) nothingKept() {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.solid && j.file.Truncate(0) == nil {
		j.end, j.holes = 0, 0
	}
}

// room tells whether as many bytes could be appended now.
func (j *journal) room(bytes int) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.end-j.holes+int64(bytes) <= j.limit
}

// bytes is what the journal holds without what was given back.
func (j *journal) bytes() int64 {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.end - j.holes
}
