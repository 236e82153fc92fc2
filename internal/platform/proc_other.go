//go:build !linux

package platform

import (
	"errors"
	"fmt"
	"runtime"
)

// NewProcesses returns the processes of this machine.
func NewProcesses() Processes { return noProcesses{} }

// noProcesses is the honest answer where processes cannot be started and found again yet.
type noProcesses struct{}

func (noProcesses) Start(c Command) (Process, error) {
	return nil, fmt.Errorf("starting a process on %s: %w", runtime.GOOS, errors.ErrUnsupported)
}

func (noProcesses) Adopt(ProcessID) (Process, error) {
	return nil, fmt.Errorf("adopting a process on %s: %w", runtime.GOOS, errors.ErrUnsupported)
}

func (noProcesses) FindByEnv(string, string) ([]ProcessID, error) {
	return nil, fmt.Errorf("listing processes on %s: %w", runtime.GOOS, errors.ErrUnsupported)
}

func killPID(int) error { return errors.ErrUnsupported }

// Identify knows of no process yet.
func Identify(pid int) ProcessID { return ProcessID{PID: pid} }
