package main

import (
	"os"
	"strings"
	"syscall"
)

// kernel is what the kernel under the agent says of itself, looked up before any command runs: the host holds it against the runtime it asked for.
type kernel struct {
	Version string `json:"version"`
	Log     string `json:"log"`
}

const (
	maxKernelText = 512
	syslogReadAll = 3
)

// readKernel gives the first line of each; the log is empty where it may not be read, which is so on a kernel shared with the machine.
func readKernel() kernel {
	version, _ := os.ReadFile("/proc/version")
	log := make([]byte, 8192)
	size, err := syscall.Klogctl(syslogReadAll, log)
	if err != nil || size < 0 {
		size = 0
	}
	return kernel{Version: firstLine(version), Log: firstLine(log[:size])}
}

func firstLine(text []byte) string {
	line, _, _ := strings.Cut(string(text), "\n")
	return strings.ToValidUTF8(line[:min(len(line), maxKernelText)], "")
}
