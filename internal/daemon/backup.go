package daemon

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"k1s.io/k1s/internal/backup"
	"k1s.io/k1s/internal/backup/dump"
	"k1s.io/k1s/internal/component"
	"k1s.io/k1s/internal/components"
	"k1s.io/k1s/internal/config"
	"k1s.io/k1s/internal/control"
	"k1s.io/k1s/internal/durable"
	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/migration"
	"k1s.io/k1s/internal/paths"
	"k1s.io/k1s/internal/pki"
	"k1s.io/k1s/internal/platform"
	"k1s.io/k1s/internal/token"
	"k1s.io/k1s/internal/version"
)

const (
	// stagingAge is after which time the files of a backup that nobody has fetched may go.
	stagingAge = 24 * time.Hour
)

// CollectBackup implements control.Backend.
func (d *Daemon) CollectBackup(ctx context.Context, r control.BackupRequest) (control.Collected, error) {
	in, api, err := d.server()
	if err != nil {
		return control.Collected{}, err
	}
	d.mu.Lock()
	moving, restoring, changing, stopped := d.moving.active(), d.care.restore.Active(), d.secrets.state.Change != nil, d.stopped != nil
	d.mu.Unlock()
	switch {
	case stopped:
		return control.Collected{}, errs.New(errs.NotRunning, "the node is stopping")
	case moving:
		return control.Collected{}, errs.Hint(errs.New(errs.Exists, "the datastore is being moved"), "wait for its end: k1s datastore")
	case restoring:
		return control.Collected{}, errs.Hint(errs.New(errs.Exists, "a snapshot of etcd is being restored"), "wait for its end: k1s etcd status")
	case changing:
		return control.Collected{}, errs.Hint(errs.New(errs.Exists, "the encryption of Secrets is being changed"), "wait for its end: k1s encryption")
	}
	var others []string
	bindings, err := clusterStore{api: api}.Bindings(ctx)
	if err != nil {
		return control.Collected{}, errs.Hint(fmt.Errorf("cannot back up now: %w", err), "the API has to work first; see: k1s status. While k1s is stopped a backup needs no API")
	}
	for _, b := range bindings {
		if b.Role == token.Server && b.Node != in.Facts.NodeName {
			others = append(others, b.Node)
		}
	}
	addresses, err := d.otherServers(ctx)
	if err != nil {
		return control.Collected{}, err
	}
	c, err := collect(ctx, in, r.Name, migration.Job{Live: components.Served(in)}, others, addresses)
	if err == nil {
		d.log.Info("state gathered for a backup", "name", c.Manifest.Name, "keys", c.Manifest.Store.Keys, "revision", c.Manifest.Store.Revision)
	}
	return c, err
}

// CollectOffline is CollectBackup while the node does not run.
func CollectOffline(ctx context.Context, o Options, r control.BackupRequest) (control.Collected, error) {
	// While a restore puts the keys in their place there may be none.
	last, err := readUnpacking(o.Paths)
	if err != nil {
		return control.Collected{}, err
	}
	if !last.Committed() && !exists(pki.KeyFile(o.Paths, pki.CA)) {
		return control.Collected{}, errs.Hint(errs.New(errs.NotRunning, "there is no server on this machine (%s)", o.Paths.Data), "run this where a server is")
	}
	unlock, in, err := quiet(ctx, &o)
	if err != nil {
		return control.Collected{}, err
	}
	defer unlock()
	if err := snapshotInPlace(in.Paths); err != nil {
		return control.Collected{}, err
	}
	if err := asServer(&in); err != nil {
		return control.Collected{}, err
	}
	switch {
	case components.UsesEtcd(in) && in.Several:
		return control.Collected{}, errs.Hint(errs.New(errs.Unsupported, "the etcd of one server of several cannot be read while it does not run"), "back up on a server that runs")
	case components.LocalDir(in) != "" && isEmpty(components.LocalDir(in)):
		return control.Collected{}, errs.Hint(errs.New(errs.NotFound, "there is no state in %s", components.LocalDir(in)), "what k1s server is told by flags is not known while it does not run: write it into %s", in.Paths.ConfigFile())
	}
	if err := errors.Join(unreplaced(in.Paths), undecided(in)); err != nil { // before anything is opened
		return control.Collected{}, err
	}
	source, err := private(in, "source")
	var c control.Collected
	if err == nil {
		c, err = collect(ctx, in, r.Name, migration.Job{Source: source}, nil, knownServers(in.Paths))
	}
	return c, errors.Join(err, os.RemoveAll(in.Paths.Moving("")))
}

// quiet takes the data directory while nothing runs, after bringing to its end what was under way.
func quiet(ctx context.Context, o *Options) (unlock func(), in component.Input, err error) {
	release, err := lock(ctx, o.Paths)
	if err != nil {
		return nil, in, err
	}
	defer func() {
		if err != nil {
			release()
		}
	}()
	pids, err := runningPIDs(o.Paths)
	if err != nil {
		return nil, in, err
	}
	if len(pids) > 0 {
		return nil, in, errs.Hint(errs.New(errs.Exists, "k1s does not run, but %d of its processes do", len(pids)), "start k1s, or end them with: k1s stop")
	}
	ended, err := endRestore(ctx, o.Paths)
	if err != nil {
		return nil, in, err
	}
	if ended {
		if o.Config, _, err = o.Reload(); err != nil {
			return nil, in, fmt.Errorf("reading the configuration that a restore has left: %w", err)
		}
	}
	if err := resolveDatastore(&o.Config); err != nil {
		return nil, in, err
	}
	in, err = offline(ctx, *o)
	return release, in, err
}

// unreplaced is an error while the cluster's authorities are being replaced: nodes have certificates of either then, and what is to become
// of them stands in no archive.
func unreplaced(p paths.Paths) error {
	r, err := readRotation(p)
	if err == nil && r.Active() {
		err = errs.Hint(errs.New(errs.Exists, "cannot back up now: the cluster's CA is being replaced (%s)", r.Stage), "%s", r.Sooner())
	}
	return err
}

// knownServers are the addresses of the other servers, as far as this one knows while it does not run.
func knownServers(p paths.Paths) []string {
	var out []string
	if b, err := os.ReadFile(p.EncryptionServers()); err == nil {
		out = strings.Fields(string(b))
	}
	if s, err := readPeers(p); err == nil && s.Joined != nil { // what cannot be read here is put aside, or the start says so
		out = append(out, s.Joined.Servers...)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// collect gathers everything in a directory of its own. job says how the datastore is read, others and addresses name the other servers.
func collect(ctx context.Context, in component.Input, name string, job migration.Job, others, addresses []string) (_ control.Collected, err error) {
	p := in.Paths
	if err := unreplaced(p); err != nil {
		return control.Collected{}, err
	}
	if in.Facts.NodeIP.IsValid() {
		addresses = append([]string{net.JoinHostPort(in.Facts.NodeIP.String(), strconv.Itoa(in.Config.Spec.API.Port))}, addresses...)
	}
	if err := forgetStaging(p, time.Now()); err != nil {
		return control.Collected{}, err
	}
	random := make([]byte, moveIDBytes)
	if _, err := rand.Read(random); err != nil {
		return control.Collected{}, err
	}
	dir := p.BackupStaging(hex.EncodeToString(random))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return control.Collected{}, fmt.Errorf("making a directory for the files of the backup: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(dir))
		}
	}()
	if file := components.DatabaseFile(in); file != "" {
		if st, err := os.Stat(file); err == nil {
			if free, err := platform.FreeBytes(p.Data); err == nil && free < uint64(st.Size())+spare {
				return control.Collected{}, errs.Hint(errs.New(errs.Failure, "%d MiB are free below %s, and a backup may need %d", free>>20, p.Data, (uint64(st.Size())+spare)>>20), "make room")
			}
		}
	}
	keys, err := clusterKeys(in)
	if err != nil {
		return control.Collected{}, err
	}
	job.Mode, job.Root, job.File = migration.Dump, components.Root(in), path.Join(dir, backup.Datastore)
	sum, err := runDump(ctx, in, job)
	if err != nil {
		return control.Collected{}, err
	}
	// What is encrypted in the datastore belongs to the keys of its time.
	again, err := clusterKeys(in)
	if err != nil {
		return control.Collected{}, err
	}
	if !maps.EqualFunc(keys, again, bytes.Equal) {
		return control.Collected{}, errs.Hint(errs.New(errs.Failure, "the cluster's keys changed while the state was read"), "run the command again")
	}
	now := time.Now().UTC().Truncate(time.Second)
	m := backup.Manifest{
		Format: backup.Format, Name: name, At: now, Cluster: in.Config.Spec.Cluster.Name, Node: in.Facts.NodeName, Servers: others, Addresses: addresses, CA: caPin(p),
		K1s: version.K1s, Kubernetes: version.Kubernetes, SecretKeys: secretKeys(p), Settings: config.Shared(in.Config),
		Store: backup.Store{Engine: string(components.Engine(in)), Root: components.Root(in), Summary: sum},
		Left:  []string{"volumes of the storage class local-path (" + p.Storage() + ") and of other storage", "container images"},
	}
	if name == "" {
		m.Name = backup.NewName(m.Node, now)
	}
	g := gatherer{dir: dir, m: &m}
	for _, file := range slices.Sorted(maps.Keys(keys)) {
		g.add(file, keys[file])
	}
	g.tree(p.Config, backup.Config, chosen{most: backup.MaxSmall, skip: func(rel string) bool { return path.Join(p.Config, rel) == p.AdminKubeconfig() }})
	g.tree(p.Manifests(), backup.Manifests, chosen{whole: true})
	if g.err != nil {
		return control.Collected{}, fmt.Errorf("gathering the files of the backup: %w", g.err)
	}
	f, err := os.Open(job.File)
	if err != nil {
		return control.Collected{}, err
	}
	part, err := backup.Sum(backup.Datastore, f)
	if err = errors.Join(err, f.Close()); err != nil {
		return control.Collected{}, err
	}
	m.Parts = append(m.Parts, part)
	return control.Collected{Dir: dir, Manifest: m}, m.Check()
}

// forgetStaging removes what backups have left whose command was killed.
func forgetStaging(p paths.Paths, now time.Time) error {
	left, err := filepath.Glob(p.BackupStaging("*"))
	for _, dir := range left {
		if st, serr := os.Stat(dir); serr == nil && now.Sub(st.ModTime()) > stagingAge {
			err = errors.Join(err, os.RemoveAll(dir))
		}
	}
	return err
}

// clusterKeys are the keys of the cluster by the names of the parts they become: its authorities, the key of service accounts, those of
// Secrets, and what a database of others is reached with.
func clusterKeys(in component.Input) (map[string][]byte, error) {
	p := in.Paths
	bundle, err := pki.ReadKept(p)
	if err != nil {
		return nil, errs.Hint(err, "a backup needs all of the cluster's keys; one that is kept elsewhere cannot be backed up from here")
	}
	out := map[string][]byte{}
	for file, content := range bundle {
		out[backup.PKI+file] = content
	}
	files := map[string]string{
		backup.Encryption + "keys.json": p.EncryptionKeys(), backup.PKI + "datastore/endpoint": p.DatastorePKI("endpoint"), backup.PKI + "datastore/ca.crt": p.DatastorePKI("ca.crt"),
		backup.PKI + "datastore/client.crt": p.DatastorePKI("client.crt"), backup.PKI + "datastore/client.key": p.DatastorePKI("client.key"),
	}
	// Those of a server that has gone with others to another database are beside them.
	c := in.Config.Spec.Datastore
	for _, file := range []string{c.EndpointFile, c.CAFile, c.CertFile, c.KeyFile} {
		if rest, ok := strings.CutPrefix(file, p.PKI("datastore")+"/"); ok {
			files[backup.PKI+"datastore/"+rest] = file
		}
	}
	for name, file := range files {
		b, err := os.ReadFile(file)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("reading the cluster's keys: %w", err)
		}
		out[name] = b
	}
	return out, nil
}

// gatherer copies files and notes what they are.
type gatherer struct {
	dir string
	m   *backup.Manifest
	err error
}

func (g *gatherer) add(name string, content []byte) {
	if g.err != nil {
		return
	}
	file := path.Join(g.dir, name)
	if g.err = os.MkdirAll(path.Dir(file), 0o700); g.err != nil {
		return
	}
	if g.err = os.WriteFile(file, content, 0o600); g.err != nil {
		return
	}
	part, err := backup.Sum(name, bytes.NewReader(content))
	g.m.Parts, g.err = append(g.m.Parts, part), err
}

// chosen is what of a directory of the user is gathered.
type chosen struct {
	most int64                 // bytes a file may have, 0 for any number
	skip func(rel string) bool // a file that is none of the user's; nil for none
	// whole makes a link that leads nowhere an error.
	whole bool
}

// tree adds the files below a directory of the user, which may be a link, under the names they have there. What is larger than most and what
// is no file is left out, and named. A link to a file is that file; one to a directory, in the first level, stands for the files in that
// directory: no more is read of it by who applies manifests, and a link may lead anywhere.
func (g *gatherer) tree(dir, prefix string, c chosen) {
	if g.err != nil {
		return
	}
	if _, err := os.Lstat(dir); !errors.Is(err, fs.ErrNotExist) {
		g.err = g.walk(dir, "", dir, prefix, c)
	}
}

// walk adds what is below the directory at, which is below in dir.
func (g *gatherer) walk(at, below, dir, prefix string, c chosen) error {
	real, err := filepath.EvalSymlinks(at)
	if errors.Is(err, fs.ErrNotExist) {
		return g.lost(path.Join(dir, below), c)
	}
	if err != nil {
		return err
	}
	return filepath.WalkDir(real, func(file string, e fs.DirEntry, err error) error {
		rel := path.Join(below, strings.TrimPrefix(strings.TrimPrefix(file, real), "/"))
		name, linked := path.Join(dir, rel), e != nil && e.Type()&fs.ModeSymlink != 0
		switch {
		case errors.Is(err, fs.ErrNotExist): // it has just gone
			return nil
		case err != nil:
			return err
		case e.IsDir() && below != "" && file != real:
			g.left(name, "it is a directory in one that a link leads to")
			return fs.SkipDir
		case e.IsDir() || c.skip != nil && c.skip(rel):
			return nil
		}
		st, err := os.Stat(file)
		switch {
		case errors.Is(err, fs.ErrNotExist) && linked:
			return g.lost(name, c)
		case errors.Is(err, fs.ErrNotExist):
			return nil
		case err != nil:
			return err
		case st.IsDir() && !strings.Contains(rel, "/"):
			return g.walk(file, rel, dir, prefix, c)
		case !st.Mode().IsRegular():
			g.left(name, "it is no file")
			return nil
		case c.most > 0 && st.Size() > c.most:
			g.left(name, fmt.Sprintf("it has %d KiB, which no configuration has", st.Size()>>10))
			return nil
		}
		b, err := os.ReadFile(file)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err == nil {
			g.add(prefix+rel, b)
			err = g.err
		}
		return err
	})
}

func (g *gatherer) left(file, why string) { g.m.Left = append(g.m.Left, file+": "+why) }

// lost is a link that leads nowhere. While it is there what was applied from where it led stays, and without it that would be removed. Editors
// and tools have hidden ones for themselves.
func (g *gatherer) lost(name string, c chosen) error {
	if c.whole && !strings.HasPrefix(path.Base(name), ".") {
		return errs.Hint(errs.New(errs.Failure, "the link %s leads nowhere, and a cluster that is restored without it would remove what was applied from there", name),
			"mount what it leads to, or remove it")
	}
	g.left(name, "it leads nowhere")
	return nil
}

// runDump lets the program that copies write the datastore to a file.
func runDump(ctx context.Context, in component.Input, j migration.Job) (dump.Summary, error) {
	c, err := startCopier(ctx, in, j)
	if err != nil {
		return dump.Summary{}, err
	}
	defer c.kill()
	e, err := c.until(ctx, nil, func(e migration.Event) bool { return e.Dumped != nil })
	if err != nil {
		return dump.Summary{}, err
	}
	return *e.Dumped, errors.Join(c.wait(), durable.SyncDir(path.Dir(j.File)))
}
