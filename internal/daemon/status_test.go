package daemon

import (
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"
	"testing"
)

func TestDNSReasonsDoNotChangeFromTryToTry(t *testing.T) {
	op := func(errno syscall.Errno) error {
		return &net.OpError{Op: "write", Net: "udp", Source: &net.UDPAddr{Port: 40123}, Err: os.NewSyscallError("write", errno)}
	}
	for _, errno := range []syscall.Errno{syscall.EPERM, syscall.ECONNREFUSED} { // as package net tells it
		said := dnsReason(&net.DNSError{Err: op(errno).Error(), Name: "kubernetes", Server: "192.0.2.1:53"})
		if want := dnsReason(op(errno)); said != want {
			t.Errorf("got %q, want %q", said, want)
		}
	}
	for want, err := range map[string]error{
		"no DNS pod is ready": fmt.Errorf("lookup: %w", op(syscall.EPERM)),
		"connection refused":  op(syscall.ECONNREFUSED),
		"no answer":           &net.DNSError{Err: "i/o timeout", IsTimeout: true},
		"no such host":        &net.DNSError{Err: "no such host", Server: "192.0.2.1:53"},
		"odd":                 errors.New("odd"),
	} {
		if got := dnsReason(err); got != want {
			t.Errorf("%v: %q, want %q", err, got, want)
		}
	}
}
