package cluster

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"k1s.io/k1s/internal/errs"
)

// asked are commands whose output tells how a node is, by the file it goes to. Where one does not work, the file says why.
var asked = []struct {
	file string
	on   Role // "" is every node
	argv []string
}{
	{"status.json", "", []string{"k1s", "status", "-o", "json"}},
	{"status.txt", "", []string{"k1s", "status", "-o", "wide"}},
	{"version.json", "", []string{"k1s", "version", "-o", "json"}},
	{"check.txt", "", []string{"k1s", "check"}},
	{"images.json", "", []string{"k1s", "image", "ls", "-o", "json"}},
	{"containers.txt", "", []string{"k1s", "crictl", "ps", "-a"}},
	{"network.txt", "", []string{"sh", "-c", "ip address; ip route show table all; ip neighbour"}},
	{"firewall.txt", "", []string{"sh", "-c", "/var/lib/k1s/payload/current/nft list ruleset"}},
	{"mounts.txt", "", []string{"cat", "/proc/self/mountinfo"}},
	{"disk.txt", "", []string{"df", "-h", "/var/lib/k1s", "/run", "/tmp"}},
	{"cluster/nodes.yaml", Server, []string{"k1s", "kubectl", "get", "nodes", "-o", "yaml"}},
	{"cluster/objects.txt", Server, []string{"k1s", "kubectl", "get", "all,endpointslices,persistentvolumeclaims,networkpolicies,leases", "-A", "-o", "wide"}},
	{"cluster/events.txt", Server, []string{"k1s", "kubectl", "get", "events", "-A", "--sort-by=.lastTimestamp"}},
	{"cluster/pods.txt", Server, []string{"k1s", "kubectl", "describe", "pods", "-A"}},
}

const (
	// askLimit is for each of those commands: a node that hangs is what is looked into.
	askLimit = 20 * time.Second
	// maxExport is how much of the end of a log is taken.
	maxExport = 32 << 20
)

// ExportLogs writes all that a report about a cluster needs into a directory that is new or empty: logs, states, objects
// and configuration, without secrets. What could not be had is told in the files themselves and in the result.
func (m Manager) ExportLogs(ctx context.Context, name, dir string) (missing []string, err error) {
	p := m.progress()
	defer p.Done()
	st, err := m.Provider.Describe(ctx, name)
	if err != nil {
		return nil, Missing(err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("making the directory for the logs: %w", err)
	}
	there, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("looking into the directory for the logs: %w", err)
	}
	if len(there) > 0 {
		return nil, errs.Hint(errs.New(errs.Exists, "%s is not empty", dir), "name a directory that is not there")
	}
	x := exporter{dir: dir, secrets: secretsOf(st.Spec)}
	public, err := json.MarshalIndent(st.Public(), "", "  ")
	if err != nil {
		return nil, err
	}
	if err := x.write("cluster.json", bytes.NewReader(public)); err != nil {
		return nil, err
	}
	if c, ok := m.Provider.(LogCollector); ok {
		p.Step("collecting the logs of cluster " + name)
		logs, err := c.Logs(ctx, name)
		if err != nil {
			return nil, err
		}
		for _, l := range logs {
			if err := x.copy(l); errors.Is(err, errWriting) {
				return nil, err
			} else if err != nil {
				missing = append(missing, fmt.Sprintf("%s: %v", l.Name, err))
			}
		}
	}
	exec, ok := m.Provider.(Executor)
	if !ok {
		return missing, nil
	}
	for _, n := range st.Nodes {
		if n.State != Running && n.PID == 0 {
			missing = append(missing, fmt.Sprintf("%s: it is %s, and was asked nothing", n.Name, n.State))
			continue
		}
		p.Step("asking node " + n.Name)
		for _, a := range asked {
			if a.on != "" && a.on != n.Role {
				continue
			}
			file := filepath.Join(n.Name, a.file)
			if n.Role == Server && strings.HasPrefix(a.file, "cluster/") {
				if n.Index > 0 && x.has(a.file) { // any server tells the same
					continue
				}
				file = a.file
			}
			said, failed := ask(ctx, exec, n, a.argv)
			if failed != nil {
				missing = append(missing, fmt.Sprintf("%s: %v", file, failed))
				said = append(said, "\n(k1s cluster logs export: "+failed.Error()+")\n"...)
			}
			if err := x.write(file, bytes.NewReader(said)); err != nil {
				return missing, err
			}
			if ctx.Err() != nil {
				return missing, ctx.Err()
			}
		}
	}
	return missing, nil
}

func ask(ctx context.Context, exec Executor, n Node, argv []string) ([]byte, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, askLimit, fmt.Errorf("no answer within %s", askLimit))
	defer cancel()
	var out bytes.Buffer
	err := exec.Exec(ctx, n.Cluster, n.Name, argv, Streams{Out: &out, ErrOut: &out})
	if cause := context.Cause(ctx); err != nil && cause != nil {
		err = cause
	}
	if err != nil {
		err = fmt.Errorf("%s: %w", strings.Join(argv, " "), err)
	}
	return out.Bytes(), err
}

// secretsOf are the secrets a spec is known to have; logs may have them too.
func secretsOf(s Spec) []string {
	var out []string
	for _, e := range s.Env {
		if publicValue(e.Name, e.Value) == redacted {
			out = append(out, e.Value)
		}
	}
	slices.Sort(out)
	return out
}

type exporter struct {
	dir     string
	secrets []string
}

// errWriting is about the directory that is written to: going on is of no use.
var errWriting = errors.New("writing the logs")

func (x exporter) has(name string) bool {
	_, err := os.Stat(filepath.Join(x.dir, name))
	return err == nil
}

func (x exporter) copy(l LogFile) error {
	f, err := os.Open(l.Path)
	if err != nil {
		return err
	}
	defer f.Close()
	if st, err := f.Stat(); err == nil && st.Size() > maxExport {
		if _, err := f.Seek(-maxExport, io.SeekEnd); err != nil {
			return err
		}
	}
	if strings.HasSuffix(l.Name, ".yaml") { // configuration is known better than a log
		b, err := io.ReadAll(f)
		if err != nil {
			return err
		}
		return x.write(l.Name, strings.NewReader(PublicConfig(string(b))))
	}
	return x.write(l.Name, f)
}

// write copies a text line by line, without secrets; a private key is more than a line.
func (x exporter) write(name string, from io.Reader) (err error) {
	to := filepath.Join(x.dir, filepath.FromSlash(name))
	if err := os.MkdirAll(filepath.Dir(to), 0o700); err != nil {
		return fmt.Errorf("%w: %w", errWriting, err)
	}
	f, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("%w: %w", errWriting, err)
	}
	out := bufio.NewWriter(f)
	defer func() {
		if werr := errors.Join(out.Flush(), f.Close()); werr != nil {
			err = errors.Join(err, fmt.Errorf("%w: %w", errWriting, werr))
		}
	}()
	in := bufio.NewReaderSize(from, 64<<10)
	var block []byte // lines of a key
	for {
		line, rerr := in.ReadBytes('\n')
		block = append(block, line...)
		inKey := bytes.Contains(block, []byte("PRIVATE KEY-----")) && !bytes.Contains(block, []byte("-----END ")) && len(block) < 1<<16
		if !inKey || rerr != nil {
			if _, err := out.Write(Redact(block, x.secrets)); err != nil {
				return nil // told by Flush
			}
			block = block[:0]
		}
		if errors.Is(rerr, io.EOF) {
			return nil
		}
		if rerr != nil {
			return rerr
		}
	}
}
