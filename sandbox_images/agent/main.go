// The agent of one box: PID 1, root or the one uid there is, reached over a unix socket or a port. See docs/agent-protocol.md.
package main

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "tiltyard-agent:", err)
		os.Exit(1)
	}
}

func run(arguments []string) error {
	if len(arguments) == 1 && arguments[0] == "version" {
		_, err := fmt.Println(protocolVersion)
		return err
	}
	if len(arguments) > 0 && arguments[0] == "install" {
		return install(arguments[1:])
	}
	if len(arguments) != 3 || arguments[0] != "serve" || arguments[1] != "--config" {
		return errors.New("usage: tiltyard-agent serve --config FILE | install ... | version")
	}
	debug.SetGCPercent(40) // an idle box is to cost little; its work is not memory-bound
	runtime.GOMAXPROCS(min(runtime.NumCPU(), fileThreads))
	config, err := loadConfig(arguments[2])
	if err != nil {
		return fmt.Errorf("config: %w", err)
	}
	if err := setLimits(config.Limits); err != nil {
		return err
	}
	if err := harden(); err != nil {
		return err
	}
	catchSignals(config.OneUID)
	a, err := newAgent(config)
	if err != nil {
		return err
	}
	listener, err := a.listen()
	if err != nil {
		return err
	}
	return a.serve(listener)
}
