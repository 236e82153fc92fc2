package daemon

import (
	"fmt"
	"net"
	"os"
)

// notifyReady tells systemd that the node is ready, as sd_notify(3) describes; without NOTIFY_SOCKET it
// does nothing.
func notifyReady() error {
	name := os.Getenv("NOTIFY_SOCKET")
	if name == "" {
		return nil
	}
	c, err := net.Dial("unixgram", name)
	if err != nil {
		return fmt.Errorf("opening the notify socket: %w", err)
	}
	defer c.Close()
	_, err = c.Write([]byte("READY=1"))
	return err
}
