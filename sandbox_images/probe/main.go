// The probe: what commands of the conformance suite do inside a box, good and bad. It needs nothing of the box's image.
//
// Every subcommand prints one fact per line, fields separated by tabs; what ends a process on purpose says so first.
package main

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"strconv"
	"syscall"
	"time"
)

type subcommand struct {
	usage string
	least int // arguments
	run   func(arguments []string) error
}

var subcommands map[string]subcommand

func init() {
	subcommands = map[string]subcommand{
		"status":     {"", 0, status},
		"status-of":  {"WHO", 1, statusOfSelf},
		"calls":      {"", 0, calls},
		"processes":  {"", 0, processes},
		"namespaces": {"", 0, namespaces},
		"environ":    {"", 0, environ},
		"rlimits":    {"", 0, rlimits},
		"terminal":   {"", 0, terminal},
		"loopback":   {"", 0, loopback},
		"interfaces": {"", 0, interfaces},
		"tcp":        {"'HOST PORT'..", 1, tcp},
		"udp":        {"'ADDRESS PORT'..", 1, udp},
		"icmp":       {"ADDRESS..", 1, icmp},
		"dns":        {"SERVER..", 1, dns},
		"writable":   {"", 0, writable},
		"readable":   {"PATH..", 1, readable},
		"switches":   {"PATH..", 1, switches},
		"mounts":     {"", 0, mounts},
		"devices":    {"", 0, devices},
		"setuid":     {"", 0, setuid},
		"sockets":    {"", 0, sockets},
		"listen":     {"PATH", 1, listen},
		"shared":     {"make|look NAME", 2, shared},
		"forks":      {"COUNT", 1, forks},
		"bomb":       {"SECONDS", 1, bomb},
		"hog":        {"MIB", 1, hog},
		"hogs":       {"COUNT MIB", 2, hogs},
		"spin":       {"COUNT SECONDS", 2, spin},
		"inodes":     {"COUNT", 1, inodes},
		"fill":       {"FILE MIB", 2, fill},
		"flood":      {"BYTES", 1, flood},
		"sparse":     {"FILE BYTES", 2, sparse},
		"race":       {"FROM TO SECONDS", 3, race},
		"deaf":       {"FILE SECONDS", 2, deaf},
		"runner":     {"FILE SECONDS", 2, runner},
		"zombies":    {"COUNT", 1, zombies},
		"orphans":    {"COUNT", 1, orphans},
	}
}

var out = bufio.NewWriter(os.Stdout)

// say prints one fact.
func say(fields ...any) {
	for number, field := range fields {
		if number > 0 {
			out.WriteByte('\t')
		}
		fmt.Fprint(out, field)
	}
	out.WriteByte('\n')
}

// armed tells that what follows has begun, though nothing else will be printed for a while.
func armed() {
	say("armed")
	out.Flush()
}

func main() {
	if err := dispatch(os.Args[1:]); err != nil {
		out.Flush()
		fmt.Fprintln(os.Stderr, "tiltyard-probe:", err)
		os.Exit(2)
	}
	out.Flush()
}

func dispatch(arguments []string) error {
	if len(arguments) == 0 {
		return errors.New("which subcommand?")
	}
	chosen, known := subcommands[arguments[0]]
	if !known {
		return fmt.Errorf("no subcommand %q", arguments[0])
	}
	if len(arguments)-1 < chosen.least {
		return fmt.Errorf("usage: %s %s", arguments[0], chosen.usage)
	}
	return chosen.run(arguments[1:])
}

func number(text string) (int, error) { return strconv.Atoi(text) }

func seconds(text string) (time.Duration, error) {
	found, err := strconv.ParseFloat(text, 64)
	return time.Duration(found * float64(time.Second)), err
}

var errnoNames = map[syscall.Errno]string{
	syscall.EPERM: "EPERM", syscall.ENOSYS: "ENOSYS", syscall.EACCES: "EACCES", syscall.EINVAL: "EINVAL",
	syscall.EBADF: "EBADF", syscall.EFAULT: "EFAULT", syscall.ENOENT: "ENOENT", syscall.ESRCH: "ESRCH",
	syscall.EAFNOSUPPORT: "EAFNOSUPPORT", syscall.EPROTONOSUPPORT: "EPROTONOSUPPORT", syscall.ENOTTY: "ENOTTY",
	syscall.ENXIO: "ENXIO", syscall.EROFS: "EROFS", syscall.ENODEV: "ENODEV", syscall.ENOSPC: "ENOSPC",
	syscall.ENETUNREACH: "ENETUNREACH", syscall.EOPNOTSUPP: "EOPNOTSUPP", syscall.EIO: "EIO", syscall.EFBIG: "EFBIG",
	syscall.EAGAIN: "EAGAIN", syscall.ENOMEM: "ENOMEM", syscall.ESOCKTNOSUPPORT: "ESOCKTNOSUPPORT", syscall.EDQUOT: "EDQUOT",
}

// outcome names an error for comparison: "ok", "EPERM" ..
func outcome(err error) string {
	if err == nil {
		return "ok"
	}
	var errno syscall.Errno
	if !errors.As(err, &errno) {
		return err.Error()
	}
	if name, known := errnoNames[errno]; known {
		return name
	}
	return fmt.Sprintf("errno %d", int(errno))
}

func asError(errno syscall.Errno) error {
	if errno == 0 {
		return nil
	}
	return errno
}
