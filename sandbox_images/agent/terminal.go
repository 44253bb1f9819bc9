package main

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"os"
	"strconv"
	"syscall"
	"time"
	"unsafe"
)

// Requests of terminals; the same on amd64 and arm64.
const (
	tcgets     = 0x5401
	tcsets     = 0x5402
	tiocswinsz = 0x5414
	tiocgptn   = 0x80045430
	tiocsptlck = 0x40045431
	// markLimit is how long the mark that ends a call's output may take through the terminal: a stopped one lets nothing pass.
	markLimit = 250 * time.Millisecond
)

type windowSize struct{ rows, columns, width, height uint16 }

// openTerminal makes a pseudo-terminal of the commands' own: they may open it by its name, too. It neither echoes nor changes what passes.
// What is typed into it by TIOCSTI reaches the session alone: the agent reads the other side and has no controlling terminal.
func (a *agent) openTerminal(sh *shell, rows, columns int) (slave *os.File, refused *Failure) {
	var err error
	a.quick.as(a.config.UID(0), func() { slave, err = sh.openPair(rows, columns) })
	if err != nil {
		logf("terminal: %v", err)
		return nil, refuse(codeCannotStart, "this box has no terminal to give")
	}
	return slave, nil
}

func (sh *shell) openPair(rows, columns int) (*os.File, error) {
	master, err := openAt(-100, "/dev/ptmx", syscall.O_RDWR|syscall.O_NOCTTY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("ptmx: %w", err)
	}
	sh.output = os.NewFile(uintptr(master), "terminal")
	var number, unlocked int32
	if err := ioctl(master, tiocgptn, unsafe.Pointer(&number)); err != nil {
		return nil, fmt.Errorf("number: %w", err)
	}
	if err := ioctl(master, tiocsptlck, unsafe.Pointer(&unlocked)); err != nil {
		return nil, fmt.Errorf("unlock: %w", err)
	}
	name := "/dev/pts/" + strconv.Itoa(int(number))
	fd, err := openAt(-100, name, syscall.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		return nil, fmt.Errorf("slave: %w", err)
	}
	slave := os.NewFile(uintptr(fd), name)
	if err := quiet(fd, rows, columns); err != nil {
		_ = slave.Close()
		return nil, err
	}
	echo, err := openAt(-100, name, syscall.O_WRONLY|syscall.O_NOCTTY|syscall.O_NONBLOCK, 0)
	if err != nil {
		_ = slave.Close()
		return nil, fmt.Errorf("echo: %w", err)
	}
	sh.echo = os.NewFile(uintptr(echo), name)
	return slave, nil
}

func quiet(fd, rows, columns int) error {
	var settings syscall.Termios
	if err := ioctl(fd, tcgets, unsafe.Pointer(&settings)); err != nil {
		return fmt.Errorf("settings: %w", err)
	}
	settings.Lflag &^= syscall.ECHO | syscall.ECHOE | syscall.ECHOK | syscall.ECHONL | syscall.ECHOCTL | syscall.ECHOKE
	settings.Oflag &^= syscall.OPOST
	if err := ioctl(fd, tcsets, unsafe.Pointer(&settings)); err != nil {
		return fmt.Errorf("settings: %w", err)
	}
	size := windowSize{rows: uint16(rows), columns: uint16(columns)}
	return ioctl(fd, tiocswinsz, unsafe.Pointer(&size))
}

func ioctl(fd int, request uintptr, argument unsafe.Pointer) error {
	return again(func() error {
		_, _, errno := syscall.Syscall(syscall.SYS_IOCTL, uintptr(fd), request, uintptr(argument))
		return asError(errno)
	})
}

// pause ends the capture with what lies in the pipe now; the pipe can be read on by another stream.
func (s *stream) pause() {
	_ = s.reader.SetReadDeadline(time.Unix(1, 0))
	<-s.idle
	s.drain()
	s.into.close()
	_ = s.reader.SetReadDeadline(time.Time{})
}

// pauseAfterMark does so for a terminal, whose bytes take a while from one side to the other: a mark is sent after them.
func (s *stream) pauseAfterMark(echo *os.File) {
	_ = s.reader.SetReadDeadline(time.Unix(1, 0))
	<-s.idle
	mark := []byte(rand.Text())
	deadline := time.Now().Add(markLimit)
	_ = echo.SetWriteDeadline(deadline)
	_, _ = echo.Write(mark)
	_ = s.reader.SetReadDeadline(deadline)
	s.readUntil(mark)
	s.into.close()
	_ = s.reader.SetReadDeadline(time.Time{})
}

// readUntil takes what comes before the mark, or before the deadline.
func (s *stream) readUntil(mark []byte) {
	var held []byte
	buffer := make([]byte, pipeChunk)
	for {
		count, err := s.reader.Read(buffer)
		held = append(held, buffer[:count]...)
		if before, _, found := bytes.Cut(held, mark); found {
			s.into.write(before)
			return
		}
		sure := max(0, len(held)-len(mark)+1)
		if err != nil {
			sure = len(held)
		}
		s.into.write(held[:sure])
		if err != nil {
			return
		}
		held = append(held[:0], held[sure:]...)
	}
}
