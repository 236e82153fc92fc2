package clustercmd

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"k1s.io/k1s/internal/cluster"
	"k1s.io/k1s/internal/config"
	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/image"
	"k1s.io/k1s/internal/kubeconfig"
)

const fileHead = "apiVersion: k1s.io/v1alpha1\nkind: Cluster\n"

// put writes a file below the world's directory.
func (w *world) put(t *testing.T, name, content string) string {
	t.Helper()
	file := filepath.Join(w.dir, name)
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// spec is what was made under a name.
func (w *world) spec(t *testing.T, name string) cluster.Spec {
	t.Helper()
	st, err := w.fake.Describe(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	return st.Spec
}

func texts[T interface{ String() string }](list []T) string {
	var out []string
	for _, v := range list {
		out = append(out, v.String())
	}
	return strings.Join(out, " ")
}

func settings(list []cluster.Setting) string {
	var out []string
	for _, s := range list {
		out = append(out, s.Flag+" on "+s.On.String())
	}
	return strings.Join(out, ", ")
}

func TestAClusterFileDescribesAllAndFlagsWin(t *testing.T) {
	w := newWorld(t)
	w.deps.Token = func(context.Context, cluster.Node, cluster.Role) (string, error) { return "token", nil }
	w.put(t, "conf/app.tar", "images")
	file := w.put(t, "conf/cluster.yaml", fileHead+`name: dev
agents:
  count: 1
  spec: {kubelet: {maxPods: 50}}
spec:
  isolation: none
  kubelet: {serializeImagePulls: true}
publish: [8080:30080, "0.0.0.0:5353:30053/udp@servers"]
volumes: [data:/data@agents]
labels: [disk=fast@agents]
taints: ["a=b:NoSchedule@agent-0"]
env: [A=file, B=file@agents]
set: [spec.log.level=debug]
imageBundles: [app.tar]
apiPort: 16999
subnet: 10.99.0.0/24
wait: 1m
switchContext: false
`)
	_, told, err := w.run("", "create", "-c", file, "--agents", "2", "--publish", "9090:30090", "-e", "A=flag", "--api-port", "16998", "--label", "x=y")
	if err != nil {
		t.Fatal(err)
	}
	s := w.spec(t, "dev")
	if s.APIPort != 16998 || s.Subnet.String() != "10.99.0.0/24" || len(s.Nodes) != 3 {
		t.Errorf("port %d, subnet %s, nodes %v", s.APIPort, s.Subnet, s.Nodes)
	}
	for what, c := range map[string]struct{ got, want string }{
		"ports":    {texts(s.Publish), "8080:30080/tcp 0.0.0.0:5353:30053/udp@servers 9090:30090/tcp"},
		"volumes":  {texts(s.Volumes), filepath.Join(w.dir, "conf/data") + ":/data@agents"},
		"env":      {texts(s.Env), "B=file@agents A=flag"},
		"settings": {settings(s.Settings), "--log-level=debug on all, --node-labels=disk=fast on agents, --node-labels=x=y on all, --node-taints=a=b:NoSchedule on agent-0"},
		"bundles":  {strings.Join(s.Nodes[2].Bundles, " "), filepath.Join(w.dir, "conf/app.tar")},
	} {
		if c.got != c.want {
			t.Errorf("%s: got %s, want %s", what, c.got, c.want)
		}
	}
	server, agent := s.Nodes[0].Config, s.Nodes[1].Config
	if strings.Contains(server, "maxPods") || !strings.Contains(agent, "maxPods: 50") || !strings.Contains(agent, "isolation: none") || !strings.Contains(agent, "serializeImagePulls: true") {
		t.Errorf("configuration of the server\n%s\nand of an agent\n%s", server, agent)
	}
	// Nodes that are added are like these.
	if got := s.Template(cluster.Agent); got.Config != agent || len(got.Bundles) != 1 {
		t.Errorf("an agent that is added: %+v", got)
	}
	if !strings.Contains(told, "context k1s-dev is in the kubeconfig") || !strings.Contains(told, "0.0.0.0:5353 leads to port 30053 of servers (udp)") {
		t.Errorf("create says\n%s", told)
	}
}

func TestMistakesInAClusterFileAreToldWithLineAndRemedy(t *testing.T) {
	w := newWorld(t)
	for text, want := range map[string]string{
		"agnets: {count: 1}":                           `cluster.yaml:3:1: unknown field "agnets"; did you mean "agents"?`,
		"agents: {cuont: 1}":                           `cluster.yaml:3:10: agents: unknown field "cuont"; did you mean "count"?`,
		"agents: 2":                                    `cluster.yaml:3:9: agents: is the number 2, and must be a section`,
		"agents: {count: 999}":                         "cluster.yaml:3:17: agents.count: 999 agents: a cluster has room for 224",
		"servers: {count: 99}":                         "cluster.yaml:3:18: servers.count: 99 servers: a cluster has at least one, and room for 20",
		"publish:\n- 8080:30080\n- 80:x":               `cluster.yaml:5:3: publish[1]: cannot publish "80:x"`,
		"volumes: [a]":                                 "cluster.yaml:3:11: volumes[0]: volume \"a\"",
		"env: [PATH=x]":                                "cluster.yaml:3:7: env[0]: the variable PATH cannot be given",
		"labels: [disk]":                               `cluster.yaml:3:10: labels[0]: "disk" is no label`,
		"labels: ['disk=fast@nodes']":                  `"nodes" is not the name of a node`,
		"labels: ['-=x']":                              "--node-labels",
		"taints: [x]":                                  `"x" is no taint`,
		"taints: ['a=b:Never']":                        "--node-taints",
		"set: [spec.isolaton=none]":                    "cluster.yaml:3:7: set[0]: the configuration has no field",
		"registry: ['ftp://x']":                        "cluster.yaml:3:12: registry[0]: registry \"ftp://x\": the scheme is http or https",
		"registry: [localhost:5000, localhost:5000]":   "there is a mirror of it already",
		"registries: {mirrors: {a: {endpoints: [b]}}}": `unknown key "endpoints"`,
		"registries: {configs: {a: {tls: {ca_file: /nowhere/ca}}}}": "configs.a.tls.ca_file",
		"reach: [x]":                      `cluster.yaml:3:9: reach[0]: "x" is no address`,
		"reach: ['a:1', 'b:1']":           "nodes cannot reach both a:1 and b:1",
		"apiPort: 70000":                  "cluster.yaml:3:10: apiPort: 70000 is no port",
		"subnet: 10.0.0.0/8":              "cluster.yaml:3:9: subnet: 10.0.0.0/8 cannot be the subnet",
		"wait: soon":                      `cluster.yaml:3:7: wait: "soon" is no time`,
		"name: No":                        `cluster.yaml:3:7: name: "No" cannot be the name`,
		"spec:\n  isolaton: none":         `cluster.yaml:4:3: spec: unknown field "isolaton"; did you mean "isolation"?`,
		"agents:\n  spec: {kubelet: 1}":   "cluster.yaml:4:19: spec.kubelet: is the number 1, and must be a map",
		"agents: {spec: {isolation: no}}": `cluster.yaml:3:28: spec.isolation: is "no", and must be`,
		"args: [--nonsense]":              "unknown flag: --nonsense",
		"volumes: ['/a:/b@agent-7']":      "the cluster has no such node",
		"version: v0.0.0-nobody-has-this": "there is no k1s-v0.0.0-nobody-has-this in PATH",
		"image: cluster.yaml":             "nodes cannot run",
	} {
		file := w.put(t, "cluster.yaml", fileHead+text+"\n")
		_, _, err := w.run("", "create", "-c", file, "--no-wait")
		hint, _ := errs.HintOf(err)
		got := ""
		if err != nil {
			got = strings.ReplaceAll(err.Error(), w.dir+"/", "") + "; " + hint
		}
		if k := errs.KindOf(err); !strings.Contains(got, want) || k != errs.Invalid && k != errs.Usage && k != errs.Unsupported {
			t.Errorf("%s\ngot  %s (kind %d)\nwant %s", text, got, k, want)
		}
	}
	if names, _ := w.fake.Clusters(t.Context()); len(names) != 0 {
		t.Errorf("clusters: %v", names)
	}
	file := w.put(t, "pod.yaml", "apiVersion: v1\nkind: Pod\n")
	_, _, err := w.run("", "create", "-c", file)
	if err == nil || !strings.Contains(err.Error(), "is of kind Cluster, or of kind Config") {
		t.Errorf("a Pod: got %v", err)
	}
}

func TestRegistriesAreUsableByEveryNode(t *testing.T) {
	w := newWorld(t)
	ca := w.put(t, "ca.crt", "a certificate")
	file := w.put(t, "registries.yaml", "configs:\n  localhost:5000:\n    auth: {username: me, password: hush-hush}\n  reg.example:\n    tls: {ca_file: "+ca+"}\n")
	if _, _, err := w.run("", "create", "dev", "--no-wait", "--registries", file, "--registry", "localhost:5000", "--registry", "https://reg.example", "--registry", "http://10.1.2.3:81"); err != nil {
		t.Fatal(err)
	}
	s := w.spec(t, "dev")
	if got := texts(s.Reach); got != "localhost:5000 reg.example:443 10.1.2.3:81" {
		t.Errorf("to reach: %s", got)
	}
	got := string(s.Files["registries.yaml"])
	for _, want := range []string{
		"http://host.k1s.internal:5000", "https://reg.example", "http://10.1.2.3:81",
		"host.k1s.internal:5000:", // its credentials are looked up by this
		"ca_file: /etc/k1s/registries/reg.example-ca.crt",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("%s is not in\n%s", want, got)
		}
	}
	if strings.Count(got, "hush-hush") != 2 || string(s.Files["registries/reg.example-ca.crt"]) != "a certificate" {
		t.Errorf("files: %q", s.Files)
	}
	if out, _, err := w.run("", "ls", "-o", "json"); err != nil || strings.Contains(out, "hush") {
		t.Errorf("ls: %v\n%s", err, out)
	}
}

func TestNodesThatReachTheOutsideGetTheProxy(t *testing.T) {
	for name, c := range map[string]struct {
		args  []string
		env   string
		reach string
	}{
		"no way out": {nil, "", ""},
		"a way out": {
			[]string{"--egress"},
			"HTTP_PROXY=http://proxy.example:80 HTTPS_PROXY=http://me:hush-hush@host.k1s.internal:3128 NO_PROXY=corp.example,host.k1s.internal,10.88.0.1",
			"127.0.0.1:3128",
		},
		"a proxy of its own": {[]string{"--egress", "-e", "HTTPS_PROXY=http://other.example:1"}, "HTTPS_PROXY=http://other.example:1", ""},
	} {
		w := newWorld(t)
		w.deps.Environ = func() []string {
			return []string{"HOME=" + w.dir, "HTTPS_PROXY=http://me:hush-hush@127.0.0.1:3128", "http_proxy=http://proxy.example:80", "NO_PROXY=corp.example"}
		}
		if _, _, err := w.run("", append([]string{"create", "dev", "--no-wait"}, c.args...)...); err != nil {
			t.Fatal(err)
		}
		s := w.spec(t, "dev")
		if got := texts(s.Env); got != c.env {
			t.Errorf("%s: got %s, want %s", name, got, c.env)
		}
		if got := texts(s.Reach); got != c.reach {
			t.Errorf("%s: to reach are %s, want %s", name, got, c.reach)
		}
	}
}

func TestOnlyAK1sIsRunInNodes(t *testing.T) {
	w := newWorld(t)
	script := w.put(t, "k1s-v9", "#!/bin/sh\ntouch "+w.dir+"/was-run\n")
	if err := os.Chmod(script, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"--image", script}, {"--image", w.dir}, {"--image", "/nowhere"}, {"--version", "../k1s"}} {
		if _, _, err := w.run("", append([]string{"create", "--no-wait"}, args...)...); !errs.Is(err, errs.Invalid) && !errs.Is(err, errs.Usage) {
			t.Errorf("%v: got %v", args, err)
		}
	}
	if _, err := os.Stat(w.dir + "/was-run"); !errors.Is(err, os.ErrNotExist) {
		t.Error("a program that is no k1s was run")
	}
	w.deps.ProgramVersion = func(_ context.Context, file string) (string, error) { return "v9.1", nil }
	if _, _, err := w.run("", "create", "--no-wait", "--image", script, "--version", "v9.2"); err == nil || !strings.Contains(err.Error(), "is k1s v9.1, not v9.2") {
		t.Errorf("another version: got %v", err)
	}
	_, told, err := w.run("", "create", "dev", "--no-wait", "--image", script, "--version", "9.1")
	if err != nil || w.spec(t, "dev").Program != script || !strings.Contains(told, "its nodes run k1s v9.1") {
		t.Errorf("%v, %q\n%s", err, w.spec(t, "dev").Program, told)
	}
}

func TestWhatIsPrintedAsAFileSaysTheSame(t *testing.T) {
	w := newWorld(t)
	file := w.put(t, "c.yaml", fileHead+"agents: {count: 1, spec: {noWorker: false, kubelet: {maxPods: 5}}}\nspec: {isolation: none}\nregistries: {configs: {a.example: {auth: {username: u, password: hush-hush}}}}\n")
	args := []string{"dev", "-c", file, "-p", "8080:30080@agents", "-v", w.dir + ":/data:ro", "-e", "A=b@agents", "--label", "a=b@servers",
		"--taint", "a=b:NoSchedule", "--set", "spec.log.level=debug@agents", "--set", "spec.kubelet.podsPerCore=7@servers", "--set", "spec.kubelet.podsPerCore=9@agent-0", "--set", "spec.kubelet.allowedUnsafeSysctls=[net.a, net.b]@agent-0", "--registry", "localhost:5000", "--no-switch", "--wait", "90s", "--", "--log-format=json"}
	first, _, err := w.run("", append([]string{"config", "print"}, args...)...)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(first, "hush") {
		t.Errorf("it tells a password:\n%s", first)
	}
	if config.KindOf([]byte(first)) != "Cluster" {
		t.Errorf("it is of kind %q", config.KindOf([]byte(first)))
	}
	second, _, err := w.run(first, "config", "print", "-c", "-")
	if err != nil || first != second {
		t.Errorf("%v: from\n%s\ncame\n%s", err, first, second)
	}
}

func TestImagesAreLoadedIntoTheNodesChosen(t *testing.T) {
	w := newWorld(t)
	w.deps.Token = func(context.Context, cluster.Node, cluster.Role) (string, error) { return "token", nil }
	if _, _, err := w.run("", "create", "dev", "--agents", "1", "--no-wait"); err != nil {
		t.Fatal(err)
	}
	var asked []string
	w.deps.Images = func(_ context.Context, n cluster.Node) ([]image.Bundle, error) {
		files, err := os.ReadDir(filepath.Join(w.dir, "dev", n.Name, "images"))
		var out []image.Bundle
		for _, f := range files {
			asked = append(asked, n.Name+" "+f.Name())
			b := image.Bundle{File: f.Name(), State: image.BundleImported, Images: []image.Imported{{Name: "app:1"}}}
			if strings.HasPrefix(f.Name(), "bad") {
				b = image.Bundle{File: f.Name(), State: image.BundleFailed, Error: "neither an OCI layout nor a docker archive"}
			}
			out = append(out, b)
		}
		return out, err
	}
	tar := string(slices.Concat(make([]byte, 257), []byte("ustar\x0000"), make([]byte, 1000)))
	for _, args := range [][]string{{"image", "load"}, {"image", "load", "dev"}, {"image", "load", "dev", "/nowhere.tar"}, {"image", "load", "dev", w.put(t, "x.tar", "text")}, {"image", "load", "dev", "-", "--nodes", "x"}} {
		if _, _, err := w.run("", args...); !errs.Is(err, errs.Usage) && !errs.Is(err, errs.Invalid) {
			t.Errorf("%v: got %v", args, err)
		}
	}
	if _, _, err := w.run("", "image", "load", "other", "-"); !errs.Is(err, errs.NotFound) {
		t.Errorf("a cluster that is not there: got %v", err)
	}
	_, told, err := w.run("", "image", "load", "dev", w.put(t, "app.tar", tar))
	if err != nil || !strings.Contains(told, "node server-0 has app:1\nnode agent-0 has app:1\n") {
		t.Errorf("%v\n%s", err, told)
	}
	asked = nil
	if _, told, err = w.run(tar+"other", "image", "load", "dev", "-", "--nodes", "agents"); err != nil || strings.Contains(told, "server-0") {
		t.Errorf("%v\n%s", err, told)
	}
	if got := strings.Join(asked, " "); strings.Contains(got, "server-0") || !strings.Contains(got, "agent-0 stdin-") {
		t.Errorf("asked were %s", got)
	}
	_, _, err = w.run("", "image", "load", "dev", w.put(t, "bad.tar", tar))
	if !errs.Is(err, errs.Invalid) || !strings.Contains(err.Error(), "neither an OCI layout") {
		t.Errorf("a tar that is no image: got %v", err)
	}
	if left, _ := filepath.Glob(filepath.Join(w.dir, "dev", ".spool-*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	if _, _, err := w.run("", "node", "kill", "dev", "agent-0"); err != nil {
		t.Fatal(err)
	}
	if _, told, err = w.run("", "image", "load", "dev", filepath.Join(w.dir, "app.tar")); err != nil || !strings.Contains(told, "node agent-0 does not run") {
		t.Errorf("%v\n%s", err, told)
	}
}

func TestLogsAreExportedWithoutSecrets(t *testing.T) {
	w := newWorld(t)
	if _, _, err := w.run("", "create", "dev", "-e", "DB_PASSWORD=hush-hush"); err != nil {
		t.Fatal(err)
	}
	w.put(t, "dev/server-0/kubelet.log", "connecting with hush-hush\n-----BEGIN PRIVATE KEY-----\nabc\n-----END PRIVATE KEY-----\nall is well\n")
	dir := filepath.Join(w.dir, "out", "logs")
	_, told, err := w.run("", "logs", "export", "dev", dir)
	if err != nil || !strings.Contains(told, "are in "+dir) {
		t.Fatalf("%v\n%s", err, told)
	}
	for file, want := range map[string]string{
		"cluster.json": `"name": "dev"`, "server-0/kubelet.log": "connecting with [redacted]\n[redacted]\nall is well\n",
		"server-0/status.json": "k1s status -o json", "cluster/events.txt": "get events",
	} {
		b, err := os.ReadFile(filepath.Join(dir, file))
		if err != nil || !strings.Contains(string(b), want) || strings.Contains(string(b), "hush") {
			t.Errorf("%s: %v\n%s", file, err, b)
		}
	}
	if _, _, err := w.run("", "logs", "export", "dev", dir); !errs.Is(err, errs.Exists) {
		t.Errorf("a second time: got %v", err)
	}
	if _, _, err := w.run("", "logs", "export", "other", filepath.Join(w.dir, "x")); !errs.Is(err, errs.NotFound) {
		t.Errorf("a cluster that is not there: got %v", err)
	}
}

func TestAKubeconfigIsMergedWhereItIsWanted(t *testing.T) {
	w := newWorld(t)
	if _, _, err := w.run("", "create", "dev", "--api-port", "16502", "--no-kubeconfig"); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(w.dir, "mine")
	for _, want := range []string{"written", "up to date"} {
		if _, told, err := w.run("", "kubeconfig", "merge", "dev", "--file", file); err != nil || !strings.Contains(told, want) {
			t.Errorf("%v: %s", err, told)
		}
	}
	if c, err := kubeconfig.Load(file); err != nil || c.Name != "k1s-dev" || c.Server != "https://127.0.0.1:16502" {
		t.Errorf("%+v, %v", c, err)
	}
	short, _, err := w.run("", "kubeconfig", "dev")
	long, _, err2 := w.run("", "kubeconfig", "print", "dev")
	if err != nil || err2 != nil || short != long || short == "" {
		t.Errorf("%v, %v:\n%s\n%s", err, err2, short, long)
	}
	if _, _, err := w.run("", "kubeconfig", "merge", "other", "--file", file); !errs.Is(err, errs.NotFound) {
		t.Errorf("a cluster that is not there: got %v", err)
	}
}

func TestAgentsAreAddedWithLabelsOfTheirOwn(t *testing.T) {
	w := newWorld(t)
	w.deps.Token = func(context.Context, cluster.Node, cluster.Role) (string, error) { return "token", nil }
	if _, _, err := w.run("", "create", "dev", "--no-wait", "--label", "a=b@agents"); err != nil {
		t.Fatal(err)
	}
	if _, _, err := w.run("", "node", "add", "dev", "--label", "x=-"); !errs.Is(err, errs.Invalid) {
		t.Errorf("a wrong label: got %v", err)
	}
	if _, _, err := w.run("", "node", "add", "dev", "--label", "c=d", "--set", "spec.log.level=debug"); err != nil {
		t.Fatal(err)
	}
	s := w.spec(t, "dev")
	if got := strings.Join(cluster.NodeArgs(s, s.Nodes[len(s.Nodes)-1]), " "); got != "--log-level=debug --node-labels=c=d --node-labels=a=b" {
		t.Errorf("its arguments: %s", got)
	}
	if got := s.Template(cluster.Agent).Args; len(got) != 0 {
		t.Errorf("the next ones get %v", got)
	}
}

func TestAnyFieldCanBeSetForAnyNode(t *testing.T) {
	w := newWorld(t)
	w.deps.Token = func(context.Context, cluster.Node, cluster.Role) (string, error) { return "token", nil }
	file := w.put(t, "conf.yaml", "apiVersion: k1s.io/v1alpha1\nkind: Config\nspec:\n  kubelet: {maxPods: 10}\n")
	if _, _, err := w.run("", "create", "dev", "--no-wait", "--agents", "2", "-c", file, "--set", "spec.kubelet.maxPods=50@agents",
		"--set", "kubelet.podsPerCore=9@agent-1", "--set", "spec.components.kube-proxy.args.v=4@servers"); err != nil {
		t.Fatal(err)
	}
	s := w.spec(t, "dev")
	for i, want := range [][]string{{"maxPods: 10", `v: 4`}, {"maxPods: 50"}, {"maxPods: 50", "podsPerCore: 9"}} {
		for _, w := range want {
			if got := s.Nodes[i].Config; !strings.Contains(got, w) {
				t.Errorf("%s is not in the configuration of node %d:\n%s", w, i, got)
			}
		}
	}
	if got := s.Template(cluster.Agent).Config; !strings.Contains(got, "maxPods: 50") || strings.Contains(got, "podsPerCore") {
		t.Errorf("an agent that is added has\n%s", got)
	}
	for _, wrong := range []string{"spec.kubelet.maxPod=50", "spec.kubelet=x", "spec.kubelet.maxPods", "spec.api=1", "spec.apiserver.x=1"} {
		if _, _, err := w.run("", "create", "k1s", "--no-wait", "--set", wrong); !errs.Is(err, errs.Invalid) && !errs.Is(err, errs.Usage) {
			t.Errorf("%s: got %v", wrong, err)
		}
	}
}

func TestListsShowNodesAndNoSecrets(t *testing.T) {
	w := newWorld(t)
	w.deps.Token = func(context.Context, cluster.Node, cluster.Role) (string, error) { return "token", nil }
	if _, _, err := w.run("", "create", "dev", "--no-wait", "--agents", "1", "-e", "HTTP_PROXY=http://a:hush-hush@proxy.example:1"); err != nil {
		t.Fatal(err)
	}
	if _, _, err := w.run("", "node", "stop", "dev", "agent-0"); err != nil {
		t.Fatal(err)
	}
	out, _, err := w.run("", "ls", "-o", "wide")
	if err != nil || !strings.Contains(out, "server-0, agent-0 (stopped)") || !strings.Contains(out, "this k1s") {
		t.Errorf("%v\n%s", err, out)
	}
	for _, format := range []string{"json", "yaml"} {
		out, _, err := w.run("", "ls", "-o", format)
		if err != nil || !strings.Contains(out, "agent-0") || !strings.Contains(out, "stopped") || strings.Contains(out, "hush") {
			t.Errorf("%s: %v\n%s", format, err, out)
		}
	}
	var all []cluster.Status
	if out, _, _ := w.run("", "ls", "-o", "json"); json.Unmarshal([]byte(out), &all) != nil || len(all) != 1 || all[0].Nodes[1].State != cluster.Stopped {
		t.Errorf("ls -o json: %s", out)
	}
}
