package main

import (
	"errors"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unicode/utf8"
	"unsafe"
)

const (
	pipeChunk = 64 << 10 // a pipe's usual capacity
	// Beyond floodBytes a stream is read at floodBytes a second or so: a command that prints without end must not take the
	// agent's share of the box's processor from the commands beside it.
	floodBytes = 32 << 20
	floodPause = 2 * time.Millisecond
	// maxUnheard bounds the streams that are read on for processes left in the background: each costs a descriptor, and one process
	// may collect the ends of many commands. Whoever writes to one beyond that gets SIGPIPE.
	maxUnheard = 256
)

// Output is what was kept of a stream.
type Output struct {
	Head  []byte `json:"head_b64"`
	Tail  []byte `json:"tail_b64"`
	Cut   int64  `json:"cut_bytes"`
	Total int64  `json:"total_bytes"`
}

// capture keeps the first `head` bytes of a stream and the last limit - head; all of it while it fits.
type capture struct {
	mu      sync.Mutex
	limit   int
	head    int
	kept    []byte // the head, then a ring of the rest once it is full
	total   int64
	closed  bool
	arrived chan struct{} // closed at the next change; nil while nobody watches
}

func newCapture(limit, head int) *capture { return &capture{limit: limit, head: head} }

func (c *capture) ringSize() int { return c.limit - c.head }

func (c *capture) write(data []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	defer c.tell()
	fits := min(len(data), c.limit-len(c.kept))
	c.kept = append(c.kept, data[:fits]...)
	c.total += int64(fits)
	if rest := data[fits:]; len(rest) > 0 {
		c.wrap(rest)
	}
}

// wrap overwrites the ring: stream offset o lies at head + (o - head) mod ring.
func (c *capture) wrap(rest []byte) {
	ring := c.kept[c.head:]
	if skip := len(rest) - len(ring); skip > 0 {
		c.total += int64(skip)
		rest = rest[skip:]
	}
	for len(rest) > 0 && len(ring) > 0 {
		at := int((c.total - int64(c.head)) % int64(len(ring)))
		count := copy(ring[at:], rest)
		c.total += int64(count)
		rest = rest[count:]
	}
	c.total += int64(len(rest))
}

func (c *capture) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	c.tell()
}

func (c *capture) tell() {
	if c.arrived != nil {
		close(c.arrived)
		c.arrived = nil
	}
}

// output is the kept part, cut at UTF-8 boundaries, with all that lies between counted.
func (c *capture) output() Output {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.total <= int64(c.limit) {
		return Output{Head: append([]byte{}, c.kept...), Tail: []byte{}, Total: c.total}
	}
	head := trimEnd(append([]byte{}, c.kept[:c.head]...))
	tail := trimStart(c.slice(c.total-int64(c.ringSize()), c.total))
	return Output{Head: head, Tail: tail, Cut: c.total - int64(len(head)) - int64(len(tail)), Total: c.total}
}

// slice copies stream bytes from..to, all of which must lie in the ring or the head.
func (c *capture) slice(from, to int64) []byte {
	data := make([]byte, 0, to-from)
	head, ring := int64(c.head), c.kept[c.head:]
	for ; from < min(to, head); from++ {
		data = append(data, c.kept[from])
	}
	for from < to {
		at := (from - head) % int64(len(ring))
		count := min(int64(len(ring))-at, to-from)
		data = append(data, ring[at:at+count]...)
		from += count
	}
	return data
}

// after returns what is known from stream offset `from` on (what fell out of the ring is left out), the offset after it,
// whether the stream is over, and a channel that is closed when there is more.
func (c *capture) after(from int64) (data []byte, next int64, over bool, more <-chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.total <= int64(c.limit) {
		data = append(data, c.kept[min(from, c.total):]...)
	} else {
		if head := int64(c.head); from < head {
			data = append(data, c.kept[from:head]...)
			from = head
		}
		if from < c.total {
			data = append(data, c.slice(max(from, c.total-int64(c.ringSize())), c.total)...)
		}
	}
	if !c.closed && c.arrived == nil {
		c.arrived = make(chan struct{})
	}
	return data, c.total, c.closed, c.arrived
}

// trimEnd drops a UTF-8 sequence that the cut left unfinished at the end.
func trimEnd(data []byte) []byte {
	for back := 1; back <= min(utf8.UTFMax, len(data)); back++ {
		last := data[len(data)-back:]
		if utf8.RuneStart(last[0]) {
			if !utf8.FullRune(last) {
				return data[:len(data)-back]
			}
			return data
		}
	}
	return data
}

// trimStart drops the rest of a UTF-8 sequence whose beginning was cut away. More than three such bytes are no text.
func trimStart(data []byte) []byte {
	for skip := 0; skip < utf8.UTFMax; skip++ {
		if skip == len(data) || utf8.RuneStart(data[skip]) {
			return data[skip:]
		}
	}
	return data
}

// stream feeds a pipe into a capture until finish is called; then what still comes is read slowly and dropped, so that
// processes left in the background are not blocked by a full pipe.
type stream struct {
	reader *os.File
	into   *capture
	idle   chan struct{}
}

func newStream(reader *os.File, into *capture) *stream {
	s := &stream{reader: reader, into: into, idle: make(chan struct{})}
	go s.pump()
	return s
}

func (s *stream) pump() {
	defer close(s.idle)
	buffer := make([]byte, 4<<10)
	for {
		count, err := s.reader.Read(buffer)
		s.into.write(buffer[:count])
		if err != nil {
			return
		}
		if count == len(buffer) && len(buffer) < pipeChunk {
			buffer = make([]byte, pipeChunk)
		}
		if s.into.total > floodBytes {
			time.Sleep(floodPause)
		}
	}
}

// finish takes what lies in the pipe now and ends the capture. The stream goes on unheard where somebody still holds it;
// `unheard` counts those of the box.
func (s *stream) finish(unheard *atomic.Int32) {
	_ = s.reader.SetReadDeadline(time.Unix(1, 0))
	<-s.idle
	over := s.drain()
	s.into.close()
	if !over && unheard.Add(1) <= maxUnheard {
		_ = s.reader.SetReadDeadline(time.Time{})
		go func() {
			defer unheard.Add(-1)
			discard(s.reader)
		}()
		return
	}
	if !over {
		unheard.Add(-1)
	}
	_ = s.reader.Close()
}

// drain reads without waiting, no more than what the pipe held when it was asked: a flood must not hold the reply back.
func (s *stream) drain() (over bool) {
	raw, err := s.reader.SyscallConn()
	if err != nil {
		return true
	}
	_ = raw.Control(func(fd uintptr) {
		var waiting int32
		_, _, _ = syscall.Syscall(syscall.SYS_IOCTL, fd, fionread, uintptr(unsafe.Pointer(&waiting)))
		buffer := make([]byte, min(max(int(waiting), 1), pipeChunk))
		for left := max(int(waiting), 1); left > 0; {
			count, err := syscall.Read(int(fd), buffer[:min(left, len(buffer))])
			if err == syscall.EINTR {
				continue
			}
			if over = err == nil && count == 0; err != nil || over {
				return
			}
			s.into.write(buffer[:count])
			left -= count
		}
	})
	return over
}

func discard(reader *os.File) {
	defer reader.Close()
	buffer := make([]byte, 8<<10)
	for {
		if _, err := reader.Read(buffer); err != nil {
			if !errors.Is(err, io.EOF) {
				logf("dropping a background stream: %v", err)
			}
			return
		}
		time.Sleep(floodPause)
	}
}
