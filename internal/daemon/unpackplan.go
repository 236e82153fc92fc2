package daemon

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"k1s.io/k1s/internal/backup"
	"k1s.io/k1s/internal/component"
	"k1s.io/k1s/internal/components"
	"k1s.io/k1s/internal/config"
	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/paths"
	"k1s.io/k1s/internal/pki"
	"k1s.io/k1s/internal/platform"
	"k1s.io/k1s/internal/token"
	"k1s.io/k1s/internal/version"
)

// peeked is what has been read of an archive before anything is decided, in a directory of its own.
type peeked struct {
	paths.Paths
	manifest backup.Manifest
	// published are the cluster's CAs, and those it had before, as they stand in the archive, PEM.
	published []byte
}

// peek reads a whole archive, checks it, and writes its configuration to a directory, which the caller removes, unless that is "".
func peek(file string, key backup.Key, dir string) (_ peeked, err error) {
	k := peeked{Paths: paths.Paths{Data: dir, Config: path.Join(dir, "config")}}
	f, err := os.Open(file)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			err = errs.Hint(errs.As(errs.NotFound, err), "see: k1s backup ls")
		}
		return k, err
	}
	defer f.Close() // it is only read
	a, err := backup.Open(f, key)
	if err != nil {
		return k, fmt.Errorf("%s: %w", file, err)
	}
	defer a.Close()
	small, err := a.Verify()
	if err != nil {
		return k, fmt.Errorf("%s: %w", file, err)
	}
	k.manifest = a.Manifest
	keys := pki.Bundle{}
	for name, content := range small {
		if rest, ok := strings.CutPrefix(name, backup.PKI); ok {
			keys[rest] = content
		}
	}
	ca, err := keys.CA()
	if err = errors.Join(keys.Check(), err); err != nil {
		return k, errs.New(errs.Invalid, "%s: %w", file, err)
	}
	if pin := token.Pin(ca); pin != k.manifest.CA {
		return k, errs.New(errs.Invalid, "%s: the certificate authority in it (%s) is not the one its manifest names (%s)", file, pin, k.manifest.CA)
	}
	k.published = slices.Concat(keys[pki.CA+".crt"], []byte("\n"), keys[path.Base(pki.CrossFile(k.Paths))])
	if dir == "" {
		return k, nil
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return k, err
	}
	defer root.Close() // nothing is written through it
	for _, name := range slices.Sorted(maps.Keys(small)) {
		// The cluster's keys are written only where they belong.
		if !strings.HasPrefix(name, backup.Config) && !strings.HasPrefix(name, backup.PKI+"datastore/") {
			continue
		}
		if err := writeBelow(root, name, bytes.NewReader(small[name])); err != nil {
			return k, err
		}
	}
	return k, nil
}

// VerifyBackup reads an archive and checks everything in it, keys and datastore included.
func VerifyBackup(file string, key backup.Key) (backup.Manifest, error) {
	k, err := peek(file, key, "")
	return k.manifest, err
}

// hasConfig tells that there is a configuration somebody has written.
func hasConfig(p paths.Paths) bool {
	dropIns, err := filepath.Glob(path.Join(p.ConfigDropIns(), "*.yaml"))
	return exists(p.ConfigFile()) || err == nil && len(dropIns) > 0
}

// decide finds out everything that a restore of what was read needs, and changes nothing.
func decide(ctx context.Context, o Options, r RestoreRequest, k peeked) (*unpackPlan, error) {
	p, m := o.Paths, k.manifest
	u := &unpackPlan{RestorePlan: RestorePlan{File: r.File, Manifest: m, Config: r.Config}, key: r.Key, dropIns: map[string][]byte{}}
	if u.Config == ConfigAuto || u.Config == "" {
		u.Config = ConfigMachine
		if !hasConfig(p) && m.Has(backup.Config) {
			u.Config = ConfigBackup
		}
	}
	// The configuration as it will be, which is in its place only at the end.
	will := paths.Paths{Data: k.Data, Config: k.Config}
	if u.Config == ConfigMachine {
		will.Config = p.Config
	}
	restored := path.Base(p.RestoreDropIn())
	if exists(will.RestoreDropIn()) { // what an earlier restore has found to be missing is found anew
		u.dropIns[restored] = settingsDropIn(nil)
	}
	c, err := u.withDropIns(will, path.Join(k.Data, "before"), r.Load)
	if err != nil {
		return nil, err
	}
	if r.To != nil {
		u.dropIns[path.Base(p.DatastoreDropIn())] = dropIn(*r.To, "k1s backup restore")
	}
	if missing := settingsFrom(m, c); len(missing) > 0 {
		u.dropIns[restored] = settingsDropIn(missing)
	}
	if c, err = u.withDropIns(will, path.Join(k.Data, "dropins"), r.Load); err != nil {
		return nil, err
	}
	if !c.Spec.ControlPlane() {
		return nil, errs.Hint(errs.New(errs.Invalid, "the configuration makes this machine an agent (spec.role)"), "restore where a server is to be")
	}
	if r.To != nil && c.Spec.Datastore != *r.To {
		return nil, errs.Hint(errs.New(errs.Invalid, "something stronger than %s sets spec.datastore, to %s", p.DatastoreDropIn(), c.Spec.Datastore.Endpoint),
			"it is a variable K1S_DATASTORE_… or a file that sorts behind; take it out")
	}
	was := c.Spec.Datastore
	c.Spec.Datastore = relocated(was, p, will)
	if err := resolveDatastore(&c); err != nil {
		return nil, errs.Hint(err, "or say where the state is to be: --to sqlite")
	}
	was.Endpoint = c.Spec.Datastore.Endpoint
	c.Spec.Datastore = was
	o.Config = c
	u.in = component.Input{Config: c, Paths: p}
	if u.in.Facts, err = detectFacts(ctx, o); err != nil {
		return nil, err
	}
	here := backup.Here{Kubernetes: version.Kubernetes, Root: components.Root(u.in), Settings: config.Shared(c)}
	if now := caPin(p); now != "" {
		published, err := pki.Published(p)
		if err != nil {
			return nil, err
		}
		here.CAs = append([]string{now}, pki.PinsOf(published)...)
		u.Replaced = now != m.CA
	}
	// Either may have come before the other.
	u.Foreign = m.Foreign(here) && !slices.Contains(pki.PinsOf(k.published), here.CAs[0])
	u.Replaced = u.Replaced && !u.Foreign
	u.Unfit, u.Datastore = m.Unfit(here), place(c.Spec.Datastore)
	for _, item := range replaced {
		file := path.Join(p.Data, item)
		if !exists(file) {
			continue
		}
		u.aside = append(u.aside, item)
		if !isEmpty(file) {
			u.Present = append(u.Present, item)
		}
	}
	if db := path.Join(p.DB(), "state.db"); !u.Foreign && exists(db) {
		u.old.OldSQLite = db
	}
	if !u.Foreign && hasEtcd(p) {
		u.old.OldEtcd = p.Etcd()
	}
	if u.Config == ConfigBackup {
		u.Written, err = filesBelow(k.Config)
	}
	for name := range u.dropIns {
		if name = path.Join("config.d", name); !slices.Contains(u.Written, name) {
			u.Written = append(u.Written, name)
		}
	}
	slices.Sort(u.Written)
	if u.Config == ConfigBackup && err == nil {
		var left []string
		if left, err = u.stillCounting(p); len(left) > 0 {
			return nil, errs.Hint(errs.New(errs.Invalid, "the backup's configuration is to count, and these files of this machine would still count beside it: %s", strings.Join(left, ", ")), "move them away")
		}
	}
	if len(u.aside) > 0 || slices.ContainsFunc(u.Written, func(rel string) bool { return exists(path.Join(p.Config, rel)) }) {
		u.Archive = p.RestoreArchive(time.Now().UTC().Format("20060102T150405Z"))
	}
	u.NeededBytes = uint64(m.Bytes()) + times*uint64(m.Store.Bytes) + spare
	if free, ferr := platform.FreeBytes(existing(p.Data)); ferr == nil {
		u.FreeBytes = free
	}
	return u, err
}

// stillCounting are the files of this machine's configuration that stay as they are.
func (u *unpackPlan) stillCounting(p paths.Paths) ([]string, error) {
	all, err := filepath.Glob(path.Join(p.ConfigDropIns(), "*.yaml"))
	return slices.DeleteFunc(append([]string{p.ConfigFile()}, all...), func(file string) bool {
		return !exists(file) || strings.HasPrefix(path.Base(file), ".") || slices.Contains(u.Written, strings.TrimPrefix(file, p.Config+"/"))
	}), err
}

// withDropIns is the configuration of somewhere with our files among its own, if there are any; dir is for copies then.
func (u *unpackPlan) withDropIns(p paths.Paths, dir string, load func(file, dropIns string) (config.Config, error)) (config.Config, error) {
	if len(u.dropIns) == 0 {
		dir = p.ConfigDropIns()
	} else if err := u.mergeDropIns(p, dir); err != nil {
		return config.Config{}, err
	}
	c, err := load(p.ConfigFile(), dir)
	if err != nil {
		err = fmt.Errorf("reading the configuration the node will have: %w", err)
	}
	return c, err
}

func (u *unpackPlan) mergeDropIns(p paths.Paths, dir string) error {
	all := maps.Clone(u.dropIns)
	theirs, err := filepath.Glob(path.Join(p.ConfigDropIns(), "*.yaml"))
	if err != nil {
		return err
	}
	for _, file := range theirs {
		if _, ours := all[path.Base(file)]; !ours {
			if all[path.Base(file)], err = os.ReadFile(file); err != nil {
				return err
			}
		}
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	for name, content := range all {
		if err := os.WriteFile(path.Join(dir, name), content, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// existing is the nearest directory that is there.
func existing(dir string) string {
	for dir != "/" && !exists(dir) {
		dir = path.Dir(dir)
	}
	return dir
}

// settingsFrom are the settings of the cluster that a configuration leaves at other defaults.
func settingsFrom(m backup.Manifest, c config.Config) map[string]json.RawMessage {
	ours, defaults, out := config.Shared(c), config.Shared(config.Default()), map[string]json.RawMessage{}
	for name, theirs := range m.Settings {
		if mine, known := ours[name]; known && string(mine) == string(defaults[name]) && string(mine) != string(theirs) {
			out[name] = theirs
		}
	}
	return out
}

// settingsDropIn is a file with settings that are given by path. JSON is YAML.
func settingsDropIn(settings map[string]json.RawMessage) []byte {
	root := map[string]any{"apiVersion": "k1s.io/v1alpha1", "kind": "Config"}
	for _, name := range slices.Sorted(maps.Keys(settings)) {
		at := root
		elems := strings.Split(name, ".")
		for _, e := range elems[:len(elems)-1] {
			next, ok := at[e].(map[string]any)
			if !ok {
				next = map[string]any{}
				at[e] = next
			}
			at = next
		}
		at[elems[len(elems)-1]] = settings[name]
	}
	b, err := json.MarshalIndent(root, "", "  ")
	if err != nil {
		panic(err) // it was JSON before
	}
	return append([]byte("# Written by k1s backup restore: what the cluster is, and this configuration says nothing of.\n"), append(b, '\n')...)
}

// allowedToUnpack tells whether a plan may be carried out.
func allowedToUnpack(u *unpackPlan, r RestoreRequest) error {
	if len(u.Unfit) > 0 {
		return errs.Hint(errs.New(errs.Invalid, "the backup %s cannot be restored here: %s", u.Manifest.Name, strings.Join(u.Unfit, "; ")),
			"correct the configuration (--config says whose is used), or take a k1s that fits")
	}
	if u.Foreign && !r.Foreign {
		return errs.Hint(errs.New(errs.Exists, "another cluster than that of the backup is on this machine"), "to put its state aside all the same, add --foreign")
	}
	if len(u.Running) > 0 && !r.Alone {
		return errs.Hint(errs.New(errs.Exists, "servers of the cluster run, at %s: they would go on with the state of now, beside the restored one", strings.Join(u.Running, ", ")),
			"stop them, and reset them before they join again: k1s reset --force; or add --alone, if they cannot be reached by anybody any more")
	}
	if u.FreeBytes != 0 && u.FreeBytes < u.NeededBytes {
		return errs.Hint(errs.New(errs.Failure, "%d MiB are free for %s, and restoring this may need %d", u.FreeBytes>>20, u.in.Paths.Data, u.NeededBytes>>20), "make room")
	}
	mounts, err := mountInfo()
	if err != nil {
		return err
	}
	data, err := filepath.EvalSymlinks(existing(u.in.Paths.Data))
	if err != nil {
		return err
	}
	if item := mountedItem(mounts, data, u.aside); item != "" {
		return errs.Hint(errs.New(errs.Unsupported, "%s is a mount of its own, and cannot be put aside", path.Join(u.in.Paths.Data, item)),
			"unmount it, restore, and move what is restored onto it afterwards")
	}
	return nil
}

// mountInfo is what is mounted where, in the form of proc_pid_mountinfo(5); "" where there is no such thing.
func mountInfo() (string, error) {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return string(b), err
}

// mountedItem is the first of the items of a directory that is a mount, empty ones included: none of those can be renamed. "" is none.
func mountedItem(mountinfo, dir string, items []string) string {
	mounts := mountsBelow(mountinfo, dir)
	for _, item := range items {
		if slices.Contains(mounts, path.Join(dir, item)) {
			return item
		}
	}
	return ""
}

// answersWithin is how long a server is waited for that may run on.
const answersWithin = 3 * time.Second
