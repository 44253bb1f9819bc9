package main

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

const patience = 2 * time.Second

// together runs `probe` on all targets at once and prints TARGET and what it said, in the order given.
func together(targets []string, probe func(string) string) error {
	answers := make([]string, len(targets))
	var group sync.WaitGroup
	for number, target := range targets {
		group.Go(func() { answers[number] = probe(target) })
	}
	group.Wait()
	for number, target := range targets {
		say(target, answers[number])
	}
	return nil
}

// tcp says connected, refused (somebody is there), unreachable or unresolved.
func tcp(targets []string) error {
	return together(targets, func(target string) string {
		host, port, _ := strings.Cut(target, " ")
		address, err := resolve(host)
		if err != nil {
			return "unresolved"
		}
		where, family, err := socketAddress(address, port)
		if err != nil {
			return "unresolved"
		}
		switch err := connect(where, family); err {
		case nil:
			return "connected"
		case syscall.ECONNREFUSED:
			return "refused"
		default:
			return "unreachable"
		}
	})
}

func resolve(host string) (netip.Addr, error) {
	if address, err := netip.ParseAddr(host); err == nil {
		return address, nil
	}
	limited, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	found, err := net.DefaultResolver.LookupNetIP(limited, "ip", host)
	if err != nil {
		return netip.Addr{}, err
	}
	return found[0], nil
}

// socketAddress keeps an IPv4 address that is written as IPv6 in the family of the latter.
func socketAddress(address netip.Addr, port string) (syscall.Sockaddr, int, error) {
	number, err := strconv.Atoi(port)
	if err != nil {
		return nil, 0, err
	}
	if address.Is4() {
		return &syscall.SockaddrInet4{Port: number, Addr: address.As4()}, syscall.AF_INET, nil
	}
	return &syscall.SockaddrInet6{Port: number, Addr: address.As16()}, syscall.AF_INET6, nil
}

func connect(where syscall.Sockaddr, family int) error {
	fd, err := syscall.Socket(family, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer syscall.Close(fd)
	limit := syscall.NsecToTimeval(int64(patience))
	if err := syscall.SetsockoptTimeval(fd, syscall.SOL_SOCKET, syscall.SO_SNDTIMEO, &limit); err != nil {
		return err
	}
	return syscall.Connect(fd, where)
}

// udp says sent or unreachable.
func udp(targets []string) error {
	return together(targets, func(target string) string {
		host, port, _ := strings.Cut(target, " ")
		address, err := netip.ParseAddr(host)
		if err != nil {
			return "unresolved"
		}
		where, family, err := socketAddress(address, port)
		if err != nil {
			return "unresolved"
		}
		return send(where, family, 0, []byte("x"))
	})
}

func send(where syscall.Sockaddr, family, protocol int, data []byte) string {
	fd, err := syscall.Socket(family, syscall.SOCK_DGRAM|syscall.SOCK_CLOEXEC, protocol)
	if err != nil {
		return "unreachable"
	}
	defer syscall.Close(fd)
	if err := syscall.Sendto(fd, data, syscall.MSG_DONTWAIT, where); err != nil {
		return "unreachable"
	}
	return "sent"
}

// icmp asks for an echo over an unprivileged socket.
func icmp(targets []string) error {
	return together(targets, func(target string) string {
		address, err := netip.ParseAddr(target)
		if err != nil {
			return "unresolved"
		}
		where, family, err := socketAddress(address, "0")
		if err != nil {
			return "unresolved"
		}
		kind, protocol := byte(8), syscall.IPPROTO_ICMP
		if family == syscall.AF_INET6 {
			kind, protocol = 128, syscall.IPPROTO_ICMPV6
		}
		return send(where, family, protocol, []byte{kind, 0, 0, 0, 0, 1, 0, 1})
	})
}

// dns asks each server for example.com: answered, silent or unreachable.
func dns(servers []string) error {
	query := []byte("\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x07example\x03com\x00\x00\x01\x00\x01")
	return together(servers, func(server string) string {
		connection, err := net.DialTimeout("udp", net.JoinHostPort(server, "53"), patience)
		if err != nil {
			return "unreachable"
		}
		defer connection.Close()
		_ = connection.SetDeadline(time.Now().Add(patience))
		if _, err := connection.Write(query); err != nil {
			return "unreachable"
		}
		if _, err := connection.Read(make([]byte, 512)); err != nil {
			return "silent"
		}
		return "answered"
	})
}

func loopback([]string) error {
	server, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	defer server.Close()
	client, err := net.DialTimeout("tcp", server.Addr().String(), patience)
	if err != nil {
		return err
	}
	defer client.Close()
	peer, err := server.Accept()
	if err != nil {
		return err
	}
	defer peer.Close()
	fmt.Fprint(client, "hello")
	buffer := make([]byte, 5)
	if _, err := peer.Read(buffer); err != nil {
		return err
	}
	say("tcp", string(buffer))
	return loopbackDatagram()
}

func loopbackDatagram() error {
	inbox, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	defer inbox.Close()
	sender, err := net.Dial("udp", inbox.LocalAddr().String())
	if err != nil {
		return err
	}
	defer sender.Close()
	fmt.Fprint(sender, "hello")
	_ = inbox.SetDeadline(time.Now().Add(patience))
	buffer := make([]byte, 5)
	count, _, err := inbox.ReadFrom(buffer)
	if err != nil {
		return err
	}
	say("udp", string(buffer[:count]))
	return nil
}

// interfaces prints names and the packets that came in by each. Not net.Interfaces: boxes have no netlink.
func interfaces([]string) error {
	text, err := os.ReadFile("/proc/net/dev")
	if err != nil {
		return err
	}
	for _, line := range strings.Split(string(text), "\n") {
		if name, counts, found := strings.Cut(line, ":"); found {
			say(strings.TrimSpace(name), strings.Fields(counts)[1])
		}
	}
	return nil
}
