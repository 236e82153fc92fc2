package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"k1s.io/k1s/internal/component"
	"k1s.io/k1s/internal/components"
	"k1s.io/k1s/internal/durable"
	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/health"
	"k1s.io/k1s/internal/paths"
	"k1s.io/k1s/internal/platform"
	"k1s.io/k1s/internal/runner"
)

// givenFiles is what Paths.Users holds.
type givenFiles struct {
	// First are values of spec.users.first whose users may still own files of this node.
	First []int `json:"first"`
}

func readUsers(p paths.Paths) (givenFiles, error) {
	var g givenFiles
	raw, err := os.ReadFile(p.Users())
	if errors.Is(err, fs.ErrNotExist) {
		return g, nil
	}
	if err == nil {
		err = json.Unmarshal(raw, &g)
	}
	if err != nil {
		return g, errs.Hint(fmt.Errorf("reading to whom files were given: %w", err), "if it is damaged write {\"first\":[%d]} into it", 61100)
	}
	return g, nil
}

// prepareUsers keeps in mind whose files become, before anything is given away, so that it can be taken back.
func prepareUsers(in *component.Input) error {
	g, err := readUsers(in.Paths)
	if err != nil {
		return err
	}
	in.Former = g.First
	u := in.Config.Spec.Users
	if !u.Separate || !in.Config.Spec.ControlPlane() || slices.Contains(g.First, u.First) {
		return nil
	}
	g.First = append(g.First, u.First)
	raw, err := json.Marshal(g)
	if err != nil {
		return err
	}
	if err := durable.WriteFile(in.Paths.Users(), append(raw, '\n'), 0o600); err != nil {
		return fmt.Errorf("keeping to whom files are given: %w", err)
	}
	return nil
}

// takenBack forgets whose files were, when everything that was given away has been started as root again.
func (d *Daemon) takenBack(ctx context.Context) error {
	d.mu.Lock()
	in := d.in
	d.mu.Unlock()
	if in.Config.Spec.Users.Separate || len(in.Former) == 0 {
		return nil
	}
	plan, err := components.Plan(in)
	if err != nil {
		return err
	}
	for _, u := range plan {
		for _, c := range u.Components {
			if err := d.sup.Wait(ctx, c.Name, component.Ready); err != nil {
				return nil // the end of the daemon; the next one goes on
			}
		}
	}
	if err := takeArchivesBack(in.Paths); err != nil {
		return err
	}
	return removeIfThere(in.Paths.Users())
}

// takeArchivesBack gives root what was put aside while it was of a user: no component has it in its plan.
func takeArchivesBack(p paths.Paths) error {
	var grants []component.Grant
	for _, aside := range []struct {
		pattern string
		mode    fs.FileMode
	}{
		{p.Etcd() + "-*", 0o700}, {p.RestoreArchive("*/etcd"), 0o700}, {p.RestoreArchive("*/db"), 0o700},
		{p.RestoreArchive("*/encryption"), 0o700}, {p.RestoreArchive("*/pki"), 0o755},
	} {
		dirs, err := filepath.Glob(aside.pattern)
		if err != nil {
			return err
		}
		for _, dir := range dirs {
			grants = append(grants, component.Grant{Path: dir, Mode: aside.mode, Tree: true})
		}
	}
	return runner.Give(grants)
}

// giveFiles gives what was written while everything runs to whom it is for. What takes the place of a file has its owner already.
func giveFiles(in component.Input) error {
	plan, err := components.Plan(in)
	if err != nil {
		return err
	}
	var failed []error
	for _, u := range plan {
		if u.User != nil { // root reads everything
			failed = append(failed, runner.Give(u.Grants))
		}
	}
	return errors.Join(failed...)
}

// checkedUsers are the users that a plan has, for the checks of this machine.
func checkedUsers(plan []component.Unit) []platform.CheckUser {
	var out []platform.CheckUser
	for _, u := range plan {
		if u.User != nil {
			out = append(out, platform.CheckUser{User: *u.User, Files: components.Given([]component.Unit{u})})
		}
	}
	return out
}

// mayRead is an error where what the configuration names, as the certificates of a database, is closed to the components' users: with that
// they would not start.
func mayRead(in component.Input) error {
	plan, err := components.Plan(in)
	if err != nil {
		return err
	}
	return health.BlockingError(platform.ClosedFiles(checkedUsers(plan)))
}

// openToAPIServer lets nobody but the API server call a socket.
func openToAPIServer(in component.Input, socket string) error {
	plan, err := components.Plan(in)
	if err != nil {
		return err
	}
	group := components.GroupOf(plan, apiserver)
	if group == 0 {
		return os.Chmod(socket, 0o600)
	}
	return errors.Join(os.Lchown(socket, 0, group), os.Chmod(socket, 0o660))
}
