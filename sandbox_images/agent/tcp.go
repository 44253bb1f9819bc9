package main

import (
	"fmt"
	"net"
	"syscall"
)

// maxLocal bounds connections from the box itself where they cannot be refused: a forwarded port of the cluster's comes from there, too.
const maxLocal = 64

// networked is a listener whose callers come over a network. The box's own commands reach it as well: they are turned away before they can
// hold one of the slots that hosts need.
type networked struct {
	net.Listener
	local chan struct{} // nil: none from the box itself
}

func listenTCP(config *Config) (net.Listener, error) {
	listener, err := net.Listen("tcp", config.Listen)
	if err != nil {
		return nil, err
	}
	n := &networked{Listener: listener}
	if config.AllowLoopback {
		n.local = make(chan struct{}, maxLocal)
	}
	return n, nil
}

func (n *networked) Accept() (net.Conn, error) {
	for {
		conn, err := n.Listener.Accept()
		if err != nil || !fromHere(conn) {
			return conn, err
		}
		select {
		case n.local <- struct{}{}: // never ready where none are allowed
			released := make(chan struct{}, 1)
			return &limitedConn{conn, func() {
				select {
				case released <- struct{}{}:
					<-n.local
				default:
				}
			}}, nil
		default:
			_ = conn.Close()
		}
	}
}

// fromHere tells of a connection whether its other end is in the box: loopback, or the pod's own address.
func fromHere(conn net.Conn) bool {
	far, ok := conn.RemoteAddr().(*net.TCPAddr)
	near, also := conn.LocalAddr().(*net.TCPAddr)
	return !ok || !also || far.IP.IsLoopback() || far.IP.Equal(near.IP)
}

// setLimits holds the agent, and so every command, to limits that the box's maker has no other way to set.
func setLimits(limits map[string]int64) error {
	const limitProcesses = 6 // RLIMIT_NPROC, which package syscall does not name
	kinds := map[string]int{"nofile": syscall.RLIMIT_NOFILE, "nproc": limitProcesses, "fsize_bytes": syscall.RLIMIT_FSIZE}
	for name, value := range limits {
		limit := syscall.Rlimit{Cur: uint64(value), Max: uint64(value)}
		if err := syscall.Setrlimit(kinds[name], &limit); err != nil {
			return fmt.Errorf("limit %s: %w", name, err)
		}
	}
	return nil
}
