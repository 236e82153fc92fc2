//go:build !linux

package daemon

import "os/exec"

// runWithUs runs a process.
func runWithUs(cmd *exec.Cmd) error { return cmd.Run() }
