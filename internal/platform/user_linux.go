package platform

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"k1s.io/k1s/internal/component"
	"k1s.io/k1s/internal/health"
)

// checkUsers tries what running as these users takes.
func checkUsers(_ context.Context, in CheckInput) []health.Problem {
	dir := in.Paths.Data
	for _, err := os.Stat(dir); err != nil && dir != filepath.Dir(dir); _, err = os.Stat(dir) {
		dir = filepath.Dir(dir) // before the first start
	}
	program := "" // one of another place tells nothing about where ours will be started
	if strings.HasPrefix(in.NFT, in.Paths.Data+"/") {
		program = in.NFT
	}
	var all []health.Problem
	for _, u := range in.Users {
		if err := TryUser(u.User, dir, program); err != nil {
			// The others would say the same.
			return append(all, health.New(health.NoUsers, "processes cannot run as user %d here: %v", u.UID, err))
		}
	}
	return append(all, ClosedFiles(in.Users)...)
}

// ClosedFiles tells which of the files that others have written for components cannot be read by these.
func ClosedFiles(users []CheckUser) []health.Problem {
	var all []health.Problem
	for _, u := range users {
		for _, name := range slices.Sorted(maps.Keys(u.Files)) {
			for _, file := range u.Files[name] {
				if err := ReadableBy(u.User, file); err != nil && !errors.Is(err, fs.ErrNotExist) { // whoever needs it says so
					all = append(all, health.New(health.FileClosed, "%s cannot be read by %s, which has user and group %d: %v", file, name, u.GID, err).
						Fix("chgrp %d %s && chmod g+r %s; the directories above have to let it pass; or set spec.users.separate: false", u.GID, file, file))
				}
			}
		}
	}
	return all
}

// credential is a user as the kernel is told of it.
func credential(u component.User) (*syscall.Credential, []uintptr) {
	c := &syscall.Credential{Uid: uint32(u.UID), Gid: uint32(u.GID)}
	for _, g := range u.Groups {
		c.Groups = append(c.Groups, uint32(g))
	}
	if u.BindLowPorts {
		return c, []uintptr{unix.CAP_NET_BIND_SERVICE}
	}
	return c, nil
}

// TryUser tells why processes of ours cannot run as a user here, nil if they can: it gives a file away in dir, which is opened as that
// user, and where program is not "" starts that and signals it. Neither the kernel's version nor the kind of a container tells as much.
func TryUser(u component.User, dir, program string) (err error) {
	f, err := os.CreateTemp(dir, ".k1s-user-*")
	if err != nil {
		return fmt.Errorf("making a file to give away: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close(), os.Remove(f.Name())) }()
	if err := f.Chown(u.UID, u.GID); err != nil {
		return fmt.Errorf("giving a file away: %w", err)
	}
	if err := ReadableBy(u, f.Name()); err != nil {
		return err
	}
	if program == "" {
		return nil
	}
	p, err := NewProcesses().Start(Command{Argv: []string{program, "--version"}, User: &u})
	if err != nil {
		return err
	}
	defer p.Close()
	if err := p.RequestStop(); err != nil {
		return errors.Join(fmt.Errorf("ending a process of that user: %w", err), p.Kill())
	}
	return waitBriefly(p)
}

// waitBriefly waits for a process that has been asked to end.
func waitBriefly(p Process) error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if _, err := p.Wait(ctx); err != nil {
		return errors.Join(err, p.Kill())
	}
	return nil
}

// ReadableBy tells why a user cannot read a file, nil if it can; links and directories on the way count.
func ReadableBy(u component.User, file string) error {
	result := make(chan error, 1)
	go func() {
		// Never unlocked: the thread ends with the goroutine, and with it the identity that it alone has.
		runtime.LockOSThread()
		result <- func() error {
			if err := becomeInThread(u); err != nil {
				return fmt.Errorf("becoming user %d: %w", u.UID, err)
			}
			fd, err := unix.Open(file, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
			if err != nil {
				return fmt.Errorf("opening %s as user %d: %w", filepath.Clean(file), u.UID, err)
			}
			return unix.Close(fd)
		}()
	}()
	return <-result
}

// becomeInThread changes the user of this thread alone, with all that root has.
func becomeInThread(u component.User) error {
	groups := []uint32{uint32(u.GID)}
	for _, g := range u.Groups {
		groups = append(groups, uint32(g))
	}
	if _, _, e := unix.RawSyscall(sysSetgroups, uintptr(len(groups)), uintptr(unsafe.Pointer(&groups[0])), 0); e != 0 {
		return e
	}
	gid, uid := uintptr(u.GID), uintptr(u.UID)
	if _, _, e := unix.RawSyscall(sysSetresgid, gid, gid, gid); e != 0 {
		return e
	}
	if _, _, e := unix.RawSyscall(sysSetresuid, uid, uid, uid); e != 0 {
		return e
	}
	return nil
}
