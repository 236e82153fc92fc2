package kubeconfig

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"sync"
	"testing"

	"go.yaml.in/yaml/v3"

	"k1s.io/k1s/internal/errs"
)

var ours = Config{Name: "dev", Server: "https://127.0.0.1:6443", CA: []byte("ca"), Cert: []byte("cert"), Key: []byte("key")}

func write(t *testing.T, content string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "config")
	if err := os.WriteFile(name, []byte(content), 0o640); err != nil {
		t.Fatal(err)
	}
	return name
}

func read(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func meaning(t *testing.T, content string) map[string]any {
	t.Helper()
	var v map[string]any
	if err := yaml.Unmarshal([]byte(content), &v); err != nil {
		t.Fatalf("%v in\n%s", err, content)
	}
	return v
}

func merge(t *testing.T, name string, c Config, o MergeOptions) {
	t.Helper()
	if _, err := Merge(t.Context(), []string{name}, c, o); err != nil {
		t.Fatal(err)
	}
}

const foreign = `# my clusters
apiVersion: v1
kind: Config
preferences: {colors: true}
current-context: work
x-tool: &anchor
  keep: [1, 2.50, "03", yes, 0x10]
clusters:
# the big one
- cluster:
    server: https://work.example.org # do not touch
    insecure-skip-tls-verify: true
    extensions:
    - name: other.example/info
      extension: {last: 2024-01-01, n: 1e3}
  name: work
contexts:
- context: {cluster: work, user: me, namespace: "1"}
  name: work
users:
- name: me
  user:
    exec:
      command: login
      env: [{name: A, value: "on"}]
      apiVersion: client.authentication.k8s.io/v1
    x-other: *anchor
`

func TestMergeAddsOursAndLeavesTheRest(t *testing.T) {
	name := write(t, foreign)
	merge(t, name, ours, MergeOptions{SetCurrent: true})
	content := read(t, name)
	got, err := Load(name)
	if err != nil || !reflect.DeepEqual(got, ours) {
		t.Fatalf("got %+v, %v; want %+v", got, err, ours)
	}
	for _, comment := range []string{"# my clusters", "# the big one", "# do not touch"} {
		if !strings.Contains(content, comment) {
			t.Errorf("comment %q is lost", comment)
		}
	}
	for _, odd := range []string{`"03", yes, 0x10`, "2024-01-01, n: 1e3", `namespace: "1"`, `value: "on"`, "2.50"} {
		if !strings.Contains(content, odd) {
			t.Errorf("%q was changed in\n%s", odd, content)
		}
	}

	if removed, err := Remove(t.Context(), []string{name}, "dev"); !removed || err != nil {
		t.Fatal(removed, err)
	}
	if got, want := meaning(t, read(t, name)), meaning(t, foreign); !reflect.DeepEqual(got, want) {
		t.Errorf("after removing ours: got %v, want %v", got, want)
	}
	if removed, err := Remove(t.Context(), []string{name, name + "-absent"}, "dev"); removed || err != nil {
		t.Errorf("removed again: %v, %v", removed, err)
	}
}

func TestMergeCanLeaveTheCurrentContext(t *testing.T) {
	name := write(t, foreign)
	merge(t, name, ours, MergeOptions{})
	if got := meaning(t, read(t, name))["current-context"]; got != "work" {
		t.Fatalf("got %v", got)
	}
}

func TestMergingTheSameAgainWritesNothing(t *testing.T) {
	name := write(t, foreign)
	merge(t, name, ours, MergeOptions{SetCurrent: true})
	before, err := os.Stat(name)
	if err != nil {
		t.Fatal(err)
	}
	changed, err := Merge(t.Context(), []string{name}, ours, MergeOptions{SetCurrent: true})
	after, statErr := os.Stat(name)
	if changed || err != nil || statErr != nil || !os.SameFile(before, after) {
		t.Fatalf("changed %v, %v", changed, err)
	}
}

func TestOurEntryIsUpdatedAndTheUsersNamespaceStays(t *testing.T) {
	name := write(t, "")
	merge(t, name, ours, MergeOptions{SetCurrent: true})
	was := read(t, name)
	content := regexp.MustCompile(`( +)user: dev\n`).ReplaceAllString(was, "${1}user: dev\n${1}namespace: shop\n")
	if content == was {
		t.Fatalf("cannot edit\n%s", was)
	}
	if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	moved := ours
	moved.Server = "https://127.0.0.1:7443"
	moved.CA = []byte("a new cluster's authority")
	merge(t, name, moved, MergeOptions{SetCurrent: true})
	want := moved
	want.Namespace = "shop"
	got, err := Load(name)
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Fatalf("got %+v, %v; want %+v", got, err, want)
	}
}

func TestEntriesOfOthersAreNotTaken(t *testing.T) {
	cluster := "clusters:\n- name: dev\n  cluster: {server: https://elsewhere}\n"
	user := "users:\n- name: other\n  user: {}\n- name: dev\n  user: {token: secret}\n"
	for name, c := range map[string]struct{ first, second, want string }{
		"cluster":            {cluster, "", "config:2: there is an entry \"dev\" already"},
		"user":               {user, "", "config:4: there is an entry \"dev\" already"},
		"in a second file":   {foreign, cluster, "config:2: there is an entry \"dev\" already"},
		"with our authority": {"clusters:\n- name: dev\n  cluster: {server: https://elsewhere, certificate-authority-data: Y2E=}\n", "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			files := []string{write(t, c.first), filepath.Join(t.TempDir(), "absent")}
			if c.second != "" {
				files = append(files, write(t, c.second))
			}
			_, err := Merge(t.Context(), files, ours, MergeOptions{SetCurrent: true})
			if c.want == "" {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			if !errs.Is(err, errs.Exists) || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("got %v", err)
			}
			if hint, _ := errs.HintOf(err); !strings.Contains(hint, "--name") {
				t.Errorf("hint %q", hint)
			}
			if read(t, files[0]) != c.first {
				t.Error("written all the same")
			}
			if removed, err := Remove(t.Context(), files, "dev"); removed || err != nil {
				t.Errorf("removed somebody else's: %v", err)
			}
		})
	}
}

func TestFilesThatAreNotThereOrEmptyBecomeValid(t *testing.T) {
	for name, path := range map[string]string{
		"absent":        filepath.Join(t.TempDir(), "new", "dir", "config"),
		"empty":         write(t, ""),
		"only a marker": write(t, "---\n"),
		"only comments": write(t, "# mine\n"),
		"empty lists":   write(t, "apiVersion: v1\nkind: Config\nclusters: []\ncontexts: null\nusers:\ncurrent-context: \"\"\n"),
		"json":          write(t, `{"apiVersion":"v1","kind":"Config","clusters":[],"contexts":[],"users":[]}`),
	} {
		t.Run(name, func(t *testing.T) {
			merge(t, path, ours, MergeOptions{SetCurrent: true})
			got, err := Load(path)
			if err != nil || !reflect.DeepEqual(got, ours) {
				t.Fatalf("got %+v, %v\n%s", got, err, read(t, path))
			}
			if name == "only comments" && !strings.HasPrefix(read(t, path), "# mine\n") {
				t.Errorf("lost the comment:\n%s", read(t, path))
			}
			if name == "absent" {
				if st, _ := os.Stat(path); st.Mode().Perm() != 0o600 {
					t.Errorf("mode %v", st.Mode())
				}
			}
			if kubectl, err := exec.LookPath("kubectl"); err == nil {
				out, err := exec.Command(kubectl, "--kubeconfig", path, "config", "view", "-o", "jsonpath={.current-context}/{.clusters[0].cluster.server}").CombinedOutput()
				if want := "dev/https://127.0.0.1:6443"; err != nil || string(out) != want {
					t.Errorf("kubectl reads %q, %v", out, err)
				}
			}
		})
	}
}

func TestMalformedFilesAreNamedWithTheirLineAndLeft(t *testing.T) {
	for name, c := range map[string]struct{ content, want string }{
		"no yaml":        {"clusters:\n- name: [\n", "config:"},
		"a tab":          {"apiVersion: v1\nclusters:\n\t- name: x\n", "config:3: "},
		"a list":         {"- a\n", "config:1: this is not a kubeconfig"},
		"no list":        {"kind: Config\nusers: 7\n", "config:2: users is not a list"},
		"no name":        {"contexts:\n- name: a\n- context: {}\n", "config:3: this entry of contexts has no name"},
		"twice":          {"clusters:\n- name: a\n- name: b\n- name: a\n", `config:4: clusters has a second entry "a" (the first is on line 2)`},
		"two documents":  {"kind: Config\n---\nkind: Config\n", "config:2: a second document begins"},
		"not even ascii": {"\x00\x01\x02", "config:1: "},
	} {
		t.Run(name, func(t *testing.T) {
			path := write(t, c.content)
			_, err := Merge(t.Context(), []string{path}, ours, MergeOptions{SetCurrent: true})
			if !errs.Is(err, errs.Invalid) || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("got %v, want %q", err, c.want)
			}
			if read(t, path) != c.content {
				t.Error("file was changed")
			}
			if _, err := os.Stat(path + ".lock"); err == nil {
				t.Error("lock was left")
			}
		})
	}
}

func TestAFileWithoutOurMarkIsNoObstacleToRemoving(t *testing.T) {
	malformed := write(t, "clusters: [\n")
	path := write(t, foreign)
	merge(t, path, ours, MergeOptions{})
	if removed, err := Remove(t.Context(), []string{malformed, path}, "dev"); !removed || err != nil {
		t.Fatalf("got %v, %v", removed, err)
	}
}

func TestOursIsStillOursAfterKubectlWroteTheFile(t *testing.T) {
	kubectl, err := exec.LookPath("kubectl")
	if err != nil {
		t.Skip("there is no kubectl")
	}
	path := write(t, foreign)
	merge(t, path, ours, MergeOptions{})
	for _, args := range [][]string{{"use-context", "dev"}, {"set-context", "dev", "--namespace=shop"}} {
		if out, err := exec.Command(kubectl, append([]string{"--kubeconfig", path, "config"}, args...)...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	merge(t, path, ours, MergeOptions{SetCurrent: true})
	if got, err := Load(path); err != nil || got.Namespace != "shop" {
		t.Fatalf("got %+v, %v", got, err)
	}
	if removed, err := Remove(t.Context(), []string{path}, "dev"); !removed || err != nil {
		t.Fatalf("got %v, %v", removed, err)
	}
}

func TestModeOwnerAndLinksStay(t *testing.T) {
	real := write(t, foreign)
	link := filepath.Join(t.TempDir(), "config")
	if err := os.Symlink(real, link); err != nil {
		t.Fatal(err)
	}
	root := os.Geteuid() == 0
	if root {
		if err := os.Chown(real, 4711, 4712); err != nil {
			t.Fatal(err)
		}
	}
	merge(t, link, ours, MergeOptions{})
	if st, err := os.Lstat(link); err != nil || st.Mode()&os.ModeSymlink == 0 {
		t.Fatalf("the link was replaced: %v", err)
	}
	st, err := os.Stat(real)
	if err != nil || st.Mode().Perm() != 0o640 || !strings.Contains(read(t, real), "dev") {
		t.Fatalf("mode %v, %v", st.Mode(), err)
	}
	if root {
		if uid, gid := ownerOf(t, real); uid != 4711 || gid != 4712 {
			t.Errorf("owner %d:%d", uid, gid)
		}
	}

	dangling := filepath.Join(t.TempDir(), "link")
	target := filepath.Join(t.TempDir(), "target")
	if err := os.Symlink(target, dangling); err != nil {
		t.Fatal(err)
	}
	merge(t, dangling, ours, MergeOptions{SetCurrent: true})
	if _, err := Load(target); err != nil {
		t.Fatal(err)
	}
}

func TestAReadOnlyFileStaysAsItIs(t *testing.T) {
	path := write(t, foreign)
	if err := os.Chmod(path, 0o444); err != nil {
		t.Fatal(err)
	}
	_, err := Merge(t.Context(), []string{path}, ours, MergeOptions{})
	if err == nil || !strings.Contains(err.Error(), "read-only") || read(t, path) != foreign {
		t.Fatalf("got %v", err)
	}
	if hint, _ := errs.HintOf(err); !strings.Contains(hint, "KUBECONFIG") {
		t.Errorf("hint %q", hint)
	}
}

func TestKubectlsLockIsRespected(t *testing.T) {
	path := write(t, foreign)
	if err := os.WriteFile(path+".lock", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errors.New("no patience"))
	_, err := Merge(ctx, []string{path}, ours, MergeOptions{})
	if err == nil || !strings.Contains(err.Error(), "held by another program: no patience") || read(t, path) != foreign {
		t.Fatalf("got %v", err)
	}
}

func TestParallelMergesKeepEachOther(t *testing.T) {
	path := write(t, foreign)
	var wg sync.WaitGroup
	names := []string{"a", "b", "c", "d", "e", "f"}
	for _, name := range names {
		wg.Go(func() {
			c := ours
			c.Name = name
			if _, err := Merge(t.Context(), []string{path}, c, MergeOptions{}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	var f file
	if err := yaml.Unmarshal([]byte(read(t, path)), &f); err != nil || len(f.Clusters) != len(names)+1 || len(f.Users) != len(names)+1 {
		t.Fatalf("%d clusters, %v", len(f.Clusters), err)
	}
}

func TestFilesFollowsKubectl(t *testing.T) {
	env := func(v string) func(string) string { return func(string) string { return v } }
	sep := string(filepath.ListSeparator)
	for _, c := range []struct {
		env, home string
		want      []string
	}{
		{"", "/home/u", []string{filepath.Join("/home/u", ".kube", "config")}},
		{"a" + sep + sep + "b", "/home/u", []string{"a", "b"}},
		{"", "", nil},
	} {
		if got := Files(env(c.env), c.home); !reflect.DeepEqual(got, c.want) {
			t.Errorf("%+v: got %q", c, got)
		}
	}
}

func TestExportEmbedsFilesAndChangesTheAddress(t *testing.T) {
	dir := t.TempDir()
	for name, content := range map[string]string{"ca.crt": "CA", "c.crt": "CERT", "c.key": "KEY"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	path := filepath.Join(dir, "sub", "kubelet.kubeconfig")
	c := Config{Name: "k1s", Server: "https://127.0.0.1:6443", CAFile: "../ca.crt", CertFile: filepath.Join(dir, "c.crt"), KeyFile: "../c.key"}
	if err := WriteFile(path, c); err != nil {
		t.Fatal(err)
	}
	out, err := Export([]byte(read(t, path)), ExportOptions{Server: "https://edge.example.org:6443", Name: "edge", Dir: filepath.Dir(path)})
	if err != nil {
		t.Fatal(err)
	}
	got, err := parse("export", out, "", "")
	want := Config{Name: "edge", Server: "https://edge.example.org:6443", CA: []byte("CA"), Cert: []byte("CERT"), Key: []byte("KEY")}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Fatalf("got %+v, %v; want %+v", got, err, want)
	}
	if _, err := Export([]byte(read(t, path)), ExportOptions{Context: "nope"}); !errs.Is(err, errs.NotFound) {
		t.Errorf("got %v", err)
	}
}

func TestWriteFileLeavesTheSameContentAlone(t *testing.T) {
	path := filepath.Join(t.TempDir(), "d", "x.kubeconfig")
	for range 2 {
		if err := WriteFile(path, ours); err != nil {
			t.Fatal(err)
		}
	}
	before, _ := os.Stat(path)
	if before.Mode().Perm() != 0o600 {
		t.Errorf("mode %v", before.Mode())
	}
	if err := WriteFile(path, ours); err != nil {
		t.Fatal(err)
	}
	after, _ := os.Stat(path)
	if !os.SameFile(before, after) {
		t.Error("replaced by the same content")
	}
	if err := WriteFile(path, Config{Name: "x"}); err == nil {
		t.Error("wrote a kubeconfig without a server")
	}
}

func TestWSLPath(t *testing.T) {
	if got, want := WSLPath("Debian", "/home/u/.kube/config"), `\\wsl$\Debian\home\u\.kube\config`; got != want {
		t.Errorf("got %s", got)
	}
}
