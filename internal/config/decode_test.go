package config

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"k1s.io/k1s/internal/errs"
)

const head = "apiVersion: k1s.io/v1alpha1\nkind: Config\n"

// decodeText applies a file to the defaults and lists the problems as "line:column path: message [hint]".
func decodeText(text string) (Config, Origins, []string) {
	cfg, origins := Default(), Origins{}
	var list []string
	for _, p := range decodeFile("f", []byte(text), &cfg, origins) {
		line := p.String()
		if p.Hint != "" {
			line += " [" + p.Hint + "]"
		}
		list = append(list, line)
	}
	return cfg, origins, list
}

func TestDecodeTellsWhatIsWrongAndWhere(t *testing.T) {
	for name, tc := range map[string]struct {
		text string
		want []string
	}{
		"an empty file is fine":            {"", nil},
		"comments only are fine":           {"# nothing\n", nil},
		"a header only is fine":            {head, nil},
		"a byte order mark is ignored":     {"\xef\xbb\xbf" + head, nil},
		"an empty spec is fine":            {head + "spec:\n", nil},
		"Windows line ends are fine":       {strings.ReplaceAll(head+"spec:\n  api:\n    port: 7000\n", "\n", "\r\n"), nil},
		"a misspelled field":               {head + "spec:\n  api:\n    prot: 1\n", []string{`f:5:5: spec.api: unknown field "prot" [did you mean "port"?]`}},
		"a field in the wrong case":        {head + "spec:\n  network:\n    podCidr: 10.1.0.0/16\n", []string{`f:5:5: spec.network: unknown field "podCidr" [did you mean "podCIDR"?]`}},
		"a field in the wrong section":     {head + "spec:\n  podCIDR: 10.1.0.0/16\n", []string{`f:4:3: spec: unknown field "podCIDR" [did you mean spec.network.podCIDR?]`}},
		"a section without spec":           {head + "network: {}\n", []string{`f:3:1: unknown field "network" [did you mean spec.network?]`}},
		"a field like no other":            {head + "spec:\n  api: {quux: 1}\n", []string{`f:4:9: spec.api: unknown field "quux" [spec.api has: port, bind, sans]`}},
		"no header":                        {"spec: {}\n", []string{"f:1:1: apiVersion: is missing [" + header + "]", "f:1:1: kind: is missing [" + header + "]"}},
		"another apiVersion":               {"apiVersion: k1s.io/v9\nkind: Config\n", []string{`f:1:13: apiVersion: is "k1s.io/v9", and must be "k1s.io/v1alpha1"`}},
		"another kind":                     {"apiVersion: k1s.io/v1alpha1\nkind: Pod\n", []string{`f:2:7: kind: is "Pod", and must be "Config"`}},
		"a list instead of a file":         {"- a\n", []string{"f:1:1: holds a list; a configuration file starts with apiVersion and kind [" + header + "]"}},
		"a number in quotes":               {head + "spec: {api: {port: '7000'}}\n", []string{`f:3:20: spec.api.port: is "7000", and must be a number [take the quotes away]`}},
		"a float for a number":             {head + "spec: {api: {port: 1.5}}\n", []string{`f:3:20: spec.api.port: is the number 1.5, and must be a number`}},
		"a hexadecimal number":             {head + "spec: {api: {port: 0x10}}\n", []string{`f:3:20: spec.api.port: is "0x10", and must be a whole decimal number`}},
		"a number for a string":            {head + "spec: {cluster: {name: 12}}\n", []string{`f:3:24: spec.cluster.name: is the number 12, and must be a string [put it in quotes: "12"]`}},
		"a boolean as a label":             {head + "spec: {node: {labels: {gpu: true}}}\n", []string{`f:3:29: spec.node.labels.gpu: is the boolean true, and must be a string [put it in quotes: "true"]`}},
		"a word for a boolean":             {head + "spec: {noWorker: maybe}\n", []string{`f:3:18: spec.noWorker: is "maybe", and must be true or false`}},
		"a map for a list":                 {head + "spec: {disable: {a: b}}\n", []string{`f:3:17: spec.disable: is a map, and must be a list, one “- value” a line`}},
		"a string for a list":              {head + "spec: {disable: coredns}\n", []string{`f:3:17: spec.disable: is "coredns", and must be a list, one “- value” a line`}},
		"a list for a section":             {head + "spec: {api: [1]}\n", []string{`f:3:13: spec.api: is a list, and must be a section with fields of its own`}},
		"a value that is not allowed":      {head + "spec: {isolation: group}\n", []string{`f:3:19: spec.isolation: is "group", and must be grouped, component or none [did you mean "grouped"?]`}},
		"a key that comes twice":           {head + "spec:\n  noWorker: true\n  noWorker: false\n", []string{`f:5:3: spec.noWorker: is set twice, first in line 4`}},
		"a section that comes twice":       {head + "spec: {}\nspec: {}\n", []string{`f:4:1: spec: is set twice, first in line 3`}},
		"a key that is no string":          {head + "spec: {1: 2}\n", []string{`f:3:8: spec: a key is the number 1, and must be a string [put the key in quotes]`}},
		"a merge key":                      {head + "spec: {<<: {noWorker: true}}\n", []string{`f:3:8: spec: merge keys (<<) are not supported [write the fields out]`}},
		"a second document":                {head + "---\n" + head, []string{`f:3:1: a second document starts here; a file holds one [put further settings in files of their own in config.d]`}},
		"a tab":                            {head + "spec:\n\tnoWorker: true\n", []string{`f:4:1: the line is indented with a tab [YAML is indented with spaces]`}},
		"an unfinished list":               {head + "spec: [\n", []string{`f:3: is not YAML: did not find expected node content`}},
		"an unfinished string":             {head + "a: 'x\n", []string{`f:3: is not YAML: found unexpected end of stream`}},
		"two values in a line":             {"a: b: c\n", []string{`f:1: is not YAML: mapping values are not allowed in this context`}},
		"wrong indentation":                {head + "spec:\n   a: 1\n  b: 2\n", []string{`f:5: is not YAML: did not find expected key`}},
		"an unknown anchor":                {head + "spec:\n  a: *nope\n", []string{`f:4: is not YAML: unknown anchor 'nope' referenced`}},
		"UTF-16":                           {"\xff\xfea\x00", []string{`f: is UTF-16 text [save it as UTF-8]`}},
		"bytes that are no UTF-8":          {head + "# caf\xe9\n", []string{`f:3:6: byte 0xe9 is not UTF-8 text [save the file as UTF-8]`}},
		"a zero byte":                      {"a\x00b", []string{`f:1:2: the control character U+0000 is not allowed in YAML [is it the right file? In a "…" string write it as an escape]`}},
		"a file that is too large":         {strings.Repeat("#", maxFileBytes+1), []string{`f: is larger than 1024 KiB [is it the right file?]`}},
		"not a number in free-form fields": {head + "spec: {kubelet: {maxPods: .nan}}\n", []string{`f:3:27: spec.kubelet.maxPods: is .nan, and must be a finite number`}},
		"all problems, not only the first": {head + "spec:\n  api: {port: x, bin: y}\n  log: {level: loud}\n", []string{
			`f:4:15: spec.api.port: is "x", and must be a number`,
			`f:4:18: spec.api: unknown field "bin" [did you mean "bind"?]`,
			`f:5:16: spec.log.level: is "loud", and must be debug, info, warn or error`,
		}},
	} {
		t.Run(name, func(t *testing.T) {
			_, _, got := decodeText(tc.text)
			if !reflect.DeepEqual(got, tc.want) {
				t.Errorf("problems:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(tc.want, "\n"))
			}
		})
	}
}

func TestDecodeReadsEveryKindOfField(t *testing.T) {
	got, origins, problems := decodeText(head + `spec:
  node:
    labels: {example.com/rack: r1, plain: ""}
    taints: [ 'gpu=true:NoSchedule' ]
  api: {port: 7000, sans: &sans [a.example, 10.0.0.1]}
  noWorker: true
  disable: []
  featureGates: {AllAlpha: true}
  kubelet:
    maxPods: 250
    memoryThrottlingFactor: 0.5
    evictionHard: {memory.available: 100Mi}
    enforceNodeAllocatable: *sans
    allowedUnsafeSysctls: [2026-01-02]
  components:
    kube-apiserver: {args: {v: 4, profiling: false, audit-log-path: "-"}}
`)
	if problems != nil {
		t.Fatal(problems)
	}
	want := Default()
	want.Spec.Node.Labels = map[string]string{"example.com/rack": "r1", "plain": ""}
	want.Spec.Node.Taints = []string{"gpu=true:NoSchedule"}
	want.Spec.API.Port, want.Spec.API.SANs = 7000, []string{"a.example", "10.0.0.1"}
	want.Spec.NoWorker = true
	want.Spec.Gates = map[string]bool{"AllAlpha": true}
	want.Spec.Kubelet = map[string]any{
		"maxPods": 250, "memoryThrottlingFactor": 0.5, "evictionHard": map[string]any{"memory.available": "100Mi"},
		"enforceNodeAllocatable": []any{"a.example", "10.0.0.1"}, "allowedUnsafeSysctls": []any{"2026-01-02"},
	}
	want.Spec.Components = map[string]ComponentArgs{"kube-apiserver": {Args: map[string]string{"v": "4", "profiling": "false", "audit-log-path": "-"}}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("config:\n%+v\nwant:\n%+v", got, want)
	}
	for path, line := range map[string]string{
		`spec.api.sans[1]`:                              "f:7:45",
		`spec.node.labels["example.com/rack"]`:          "f:5:32",
		`spec.kubelet.evictionHard["memory.available"]`: "f:14:38",
		`spec.components.kube-apiserver.args.v`:         "f:18:32",
		`spec.cluster.name`:                             "default",
	} {
		if got := origins.Of(path).String(); got != line {
			t.Errorf("origin of %s is %s, want %s", path, got, line)
		}
	}
}

func TestDecodeBoundsAliasBombsDepthAndMessages(t *testing.T) {
	bomb := head + "spec:\n  kubelet:\n    a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
	for i := 1; i < 12; i++ {
		bomb += fmt.Sprintf("    a%d: &a%d [%s]\n", i, i, strings.TrimSuffix(strings.Repeat(fmt.Sprintf("*a%d, ", i-1), 10), ", "))
	}
	wrong := head + "spec:\n"
	for i := range 3000 {
		wrong += fmt.Sprintf("  wrong%d: 1\n", i)
	}
	for name, tc := range map[string]struct{ text, want string }{
		"aliases of aliases":  {bomb, "holds more than 20000 values"},
		"an alias of itself":  {head + "spec: {kubelet: {a: &a [*a]}}\n", "nested more than 50 deep"},
		"deep lists":          {head + "spec: {kubelet: {a: " + strings.Repeat("[", 5000) + strings.Repeat("]", 5000) + "}}\n", "nested more than 50 deep"},
		"a file full of junk": {wrong, "2900 more problems are not shown"},
	} {
		t.Run(name, func(t *testing.T) {
			_, _, problems := decodeText(tc.text)
			if len(problems) == 0 || len(problems) > maxProblems+1 || !strings.Contains(problems[len(problems)-1], tc.want) {
				t.Errorf("%d problems, the last must tell %q: %.300q", len(problems), tc.want, problems)
			}
		})
	}
}

func TestLoadMergesFilesEnvironmentAndFlags(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		t.Helper()
		name = filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return name
	}
	file := write("config.yaml", head+"spec:\n  api: {port: 7000, bind: 127.0.0.1, sans: [a, b]}\n  cluster: {name: one}\n  node: {labels: {x: '1', y: '1', z: '1'}}\n  kubelet: {maxPods: 10, evictionHard: {a: '1', b: '2'}}\n")
	write("config.d/20.yaml", head+"spec:\n  cluster: {name: three}\n")
	first := write("config.d/10.yaml", head+"spec:\n  api: {port: null, sans: [c]}\n  cluster: {name: two}\n  node: {labels: {y: '2', z: null}}\n  kubelet: {maxPods: null, evictionHard: {b: '3'}}\n")
	write("config.d/30.yml", "not: read")
	write("config.d/.hidden.yaml", "not: read")
	fs, flags := flagSet(t, file, "--config", file, "--node-labels", "x=9", "--disable", "coredns", "--disable=local-path,metrics-server")
	if fs.Lookup("kubelet") != nil {
		t.Error("free-form fields must have no flag")
	}
	got, err := Load(flags.Sources([]string{"K1S_API_BIND=0.0.0.0", "K1S_CLUSTER_NAME=four", "K1S_NODE_NAME=", "K1S_DISABLE=lost", "K1S_API_PROT=1", "K1S_OTHER_THING=1", "HOME=/root"}))
	if err != nil {
		t.Fatal(err)
	}
	want := Default()
	want.Spec.API.SANs = []string{"c"}
	want.Spec.Cluster.Name = "four"
	want.Spec.Node.Labels = map[string]string{"x": "9", "y": "2"}
	want.Spec.Kubelet = map[string]any{"evictionHard": map[string]any{"a": "1", "b": "3"}}
	want.Spec.Disable = []string{"coredns", "local-path", "metrics-server"}
	if !reflect.DeepEqual(got.Config, want) {
		t.Errorf("config:\n%+v\nwant:\n%+v", got.Config, want)
	}
	for path, origin := range map[string]string{
		"spec.api.port": "default", "spec.api.bind": "K1S_API_BIND", "spec.cluster.name": "K1S_CLUSTER_NAME", "spec.api.sans[0]": first + ":4:28",
		"spec.api.sans[1]": first + ":4:27", "spec.node.labels.x": "--node-labels", "spec.node.labels.y": first + ":6:22", "spec.disable": "--disable",
		"spec.kubelet.evictionHard.a": file + ":7:44", "spec.kubelet.evictionHard.b": first + ":7:46",
	} {
		if got := got.Origins.Of(path).String(); got != origin {
			t.Errorf("origin of %s is %s, want %s", path, got, origin)
		}
	}
	warnings := strings.Join(got.Warnings, "\n")
	for _, w := range []string{"30.yml is not read", "K1S_API_PROT has no effect: there is no such setting; did you mean K1S_API_PORT?", "K1S_OTHER_THING has no effect"} {
		if !strings.Contains(warnings, w) {
			t.Errorf("warnings %q do not tell %q", warnings, w)
		}
	}
	if len(got.Warnings) != 3 {
		t.Errorf("warnings %q, want 3", got.Warnings)
	}
}

func TestLoadReportsFilesThatCannotBeRead(t *testing.T) {
	dir := t.TempDir()
	missing := filepath.Join(dir, "missing.yaml")
	if _, err := Load(Sources{File: missing, DropIns: filepath.Join(dir, "missing.d")}); err != nil {
		t.Errorf("a missing default file must be fine, got %v", err)
	}
	_, err := Load(Sources{File: missing, FileMustExist: true})
	if !errs.Is(err, errs.Invalid) || !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), missing+": cannot be read: no such file") {
		t.Errorf("a missing file that was named: %v", err)
	}
	if _, err = Load(Sources{File: dir}); err == nil || err.Error() != dir+": is a directory, and must be a file" {
		t.Errorf("a directory: %v", err)
	}
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err = Load(Sources{DropIns: file}); err == nil {
		t.Error("a file as drop-in directory must be an error")
	}
}

func TestEffectiveJoinsProblemsOfAllSources(t *testing.T) {
	_, flags := flagSet(t, "", "--api-port", "0")
	_, err := Effective(Sources{
		File: stdinFile, Stdin: strings.NewReader(head + "spec:\n  network:\n    podCIDR: 10.42.0.0/33\n    mtuu: 1\n"),
		Env: []string{"K1S_NETWORK_MTU=big"}, Flags: flags,
	}, Known{})
	want := `the configuration has 4 problems:
  standard input:5:14: spec.network.podCIDR: "10.42.0.0/33" is no range of addresses
    for example 10.42.0.0/16
  standard input:6:5: spec.network: unknown field "mtuu"
    did you mean "mtu"?
  K1S_NETWORK_MTU: spec.network.mtu: is "big", and must be a whole decimal number
  --api-port: spec.api.port: is 0, and must be from 1 to 65535`
	if err == nil || err.Error() != want || !errs.Is(err, errs.Invalid) {
		t.Errorf("error:\n%v\nwant:\n%s", err, want)
	}
}

// FuzzDecode looks for input that crashes the decoder, leaves a configuration that cannot be printed, or
// is read differently after it was printed.
func FuzzDecode(f *testing.F) {
	for _, s := range []string{
		"", head, head + "spec:\n  api: {port: 7000}\n", "a: &a [*a]", head + "spec: {kubelet: {a: &a {b: *a}}}", "\xff\xfe", "---\n---\n", "\t", "? {a: b}\n: c", "!!binary aGk=",
		head + "spec: {kubelet: {a: !!binary aGk=, b: 1e999, c: 0o17, d: 2026-01-02, e: ~, f: !x y}}", head + "spec:\n  node:\n    labels: {<<: {a: b}, ~: c, \"\": d}\n",
		head + "spec: {components: {x: {args: {a: 1, b: yes, c: null}}, y: null}}", "&a *a", "%YAML 1.1\n---\n", "a: |\n\t\x85",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		cfg, origins := Default(), Origins{}
		problems := decodeFile("f", data, &cfg, origins)
		for _, p := range problems {
			if p.Message == "" || p.Origin.Name != "f" {
				t.Errorf("problem without text or place: %+v", p)
			}
		}
		_ = Validate(cfg, Known{Origins: origins})
		text, err := YAML(cfg, origins)
		if err != nil {
			t.Fatalf("cannot be printed: %v", err)
		}
		again := Default()
		if p := decodeFile("printed", text, &again, Origins{}); len(p) > 0 {
			t.Fatalf("what was printed has problems: %v\n%s", p, text)
		}
		text2, err := YAML(again, nil)
		if err != nil {
			t.Fatal(err)
		}
		plain, err := YAML(cfg, nil)
		if err != nil {
			t.Fatal(err)
		}
		if string(plain) != string(text2) {
			t.Errorf("read again it is\n%s\nand was\n%s", text2, plain)
		}
	})
}
