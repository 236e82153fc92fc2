package addonmanager

import (
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"k1s.io/k1s/internal/addons"
)

// parsed is a stack from text, or a failed test.
func parsed(t *testing.T, text string) stack {
	t.Helper()
	s, err := parse(source{id: stackID{user, "x"}, files: []file{{"x.yaml", []byte(text)}}})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func refs(objects []object) []string {
	var out []string
	for _, o := range objects {
		out = append(out, o.ref().String())
	}
	return out
}

func expect[T comparable](t *testing.T, what string, got, want []T) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("%s\n got %v\nwant %v", what, got, want)
	}
}

func TestObjectsAreAppliedAfterWhatTheyNeed(t *testing.T) {
	s := parsed(t, `
{apiVersion: admissionregistration.k8s.io/v1, kind: ValidatingWebhookConfiguration, metadata: {name: gate}}
---
{apiVersion: example.com/v1, kind: Toy, metadata: {name: toy, namespace: play}}
---
{apiVersion: apps/v1, kind: Deployment, metadata: {name: app, namespace: play}}
---
{apiVersion: v1, kind: ServiceAccount, metadata: {name: app, namespace: play}}
---
{apiVersion: apiextensions.k8s.io/v1, kind: CustomResourceDefinition, metadata: {name: toys.example.com}}
---
{apiVersion: v1, kind: Namespace, metadata: {name: play}}
`)
	got := ordered(s.objects)
	expect(t, "first", refs(got[phaseFirst]), []string{"CustomResourceDefinition.apiextensions.k8s.io toys.example.com", "Namespace play"})
	expect(t, "means", refs(got[phaseMeans]), []string{"ServiceAccount play/app"})
	expect(t, "workloads", refs(got[phaseWorkload]), []string{"Toy.example.com play/toy", "Deployment.apps play/app"})
	expect(t, "gates", refs(got[phaseGates]), []string{"ValidatingWebhookConfiguration.admissionregistration.k8s.io gate"})
}

func TestPackagedObjectsAreOfBuiltInKinds(t *testing.T) {
	rendered, err := addons.Render(addons.Node{ClusterDNS: "10.43.0.10", PodsProgram: "/p", PayloadID: "1", StorageDir: "/s"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range rendered {
		for _, o := range parsed(t, text).objects {
			if _, ok := builtin[o.GroupVersionKind()]; !ok {
				t.Errorf("%s: %s has to be asked for at every start: add it to the built-in kinds", name, o.ref())
			}
		}
	}
}

func TestListsAreTakenApartAndNamespacesCompleted(t *testing.T) {
	s := parsed(t, `
apiVersion: v1
kind: List
items:
  - {apiVersion: v1, kind: ConfigMap, metadata: {name: a}}
  - apiVersion: v1
    kind: ConfigMapList
    items: [{apiVersion: v1, kind: ConfigMap, metadata: {name: b, namespace: other}}]
---
# only a comment
---
{"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": "c", "namespace": "wrong"}}
`)
	expect(t, "objects", refs(s.objects), []string{"ConfigMap default/a", "ConfigMap other/b", "ClusterRole.rbac.authorization.k8s.io c"})
}

func TestParseErrorsNameFileAndLine(t *testing.T) {
	const good = "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: a\n"
	for name, c := range map[string]struct{ text, want string }{
		"bad YAML in the second document": {good + "---\n\n# comment\napiVersion: v1\nkind: \"Pod\nmetadata: {}\n", "x.yaml:11: found unexpected end of stream"},
		"a key twice":                     {good + "---\napiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: b\n  name: c\n", "x.yaml:10: key \"name\" already set"},
		"a tab":                           {"apiVersion: v1\nkind: ConfigMap\n\tmetadata: {}\n", "x.yaml:3: "},
		"no kind":                         {good + "---\nfoo: bar\n", "x.yaml:6: there is no apiVersion and kind"},
		"no name":                         {"\n\n\nkind: Pod\napiVersion: v1\n", "x.yaml:4: Pod has no metadata.name"},
		"a scalar":                        {"hello\n", "x.yaml:1: a document has to be an object"},
		"a number as label":               {"apiVersion: v1\nkind: Pod\nmetadata: {name: a, labels: {x: 1}}\n", "x.yaml:1: metadata.labels: the value of x is no string: quote it"},
		"a number as name":                {"apiVersion: v1\nkind: Pod\nmetadata: {name: 1}\n", "x.yaml:1: metadata.name is no string: quote it"},
		"an object twice":                 {good + "---\n" + good, "x.yaml:6: ConfigMap default/a is already in x.yaml:1"},
		"a bad item":                      {"apiVersion: v1\nkind: List\nitems: [1]\n", "x.yaml:1 (item 1): is no object"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := parse(source{files: []file{{"x.yaml", []byte(c.text)}}})
			if err == nil || !strings.HasPrefix(err.Error(), c.want) {
				t.Errorf("got %v, want an error that begins with %q", err, c.want)
			}
		})
	}
}

func TestAllProblemsOfAStackAreReported(t *testing.T) {
	_, err := parse(source{files: []file{{"a.yaml", []byte("kind: [\n")}, {"b.yaml", []byte("x: y\n---\n- 1\n")}}})
	for _, want := range []string{"a.yaml:", "b.yaml:1: ", "b.yaml:3: "} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want also %q", err, want)
		}
	}
}

func entries(objects []object) []applied {
	var out []applied
	for _, o := range objects {
		out = append(out, applied{ref: o.ref(), Version: o.GroupVersionKind().Version, UID: "u"})
	}
	return out
}

func pruned(in []applied) []string {
	var out []string
	for _, a := range in {
		out = append(out, a.ref.String())
	}
	return out
}

func TestPruningTakesWhatNoStackWantsGatesFirstAndNamespacesLast(t *testing.T) {
	was := parsed(t, `
{apiVersion: v1, kind: Namespace, metadata: {name: play}}
---
{apiVersion: v1, kind: ConfigMap, metadata: {name: moved, namespace: play}}
---
{apiVersion: v1, kind: ConfigMap, metadata: {name: gone, namespace: play}}
---
{apiVersion: apps/v1, kind: Deployment, metadata: {name: stays, namespace: play}}
---
{apiVersion: apps/v1, kind: Deployment, metadata: {name: gone, namespace: play}}
---
{apiVersion: admissionregistration.k8s.io/v1, kind: ValidatingWebhookConfiguration, metadata: {name: gate}}
---
{apiVersion: v1, kind: Namespace, metadata: {name: kube-system}}
`)
	is := parsed(t, `{apiVersion: apps/v1, kind: Deployment, metadata: {name: stays, namespace: play}}`)
	other := parsed(t, `{apiVersion: v1, kind: ConfigMap, metadata: {name: moved, namespace: play}}`)
	expect(t, "pruned", pruned(prunable(entries(was.objects), wantedBy([]stack{is, other}))), []string{
		"ValidatingWebhookConfiguration.admissionregistration.k8s.io gate",
		"Deployment.apps play/gone", "ConfigMap play/gone", "Namespace play",
	})
}

func TestAnotherVersionOfAnObjectIsTheSameObject(t *testing.T) {
	was := parsed(t, `{apiVersion: autoscaling/v1, kind: HorizontalPodAutoscaler, metadata: {name: a}}`)
	is := parsed(t, `{apiVersion: autoscaling/v2, kind: HorizontalPodAutoscaler, metadata: {name: a}}`)
	expect(t, "pruned", pruned(prunable(entries(was.objects), wantedBy([]stack{is}))), nil)
}

func TestInventoryBeforeApplyingHasOldAndNew(t *testing.T) {
	was := parsed(t, `{apiVersion: v1, kind: ConfigMap, metadata: {name: old}}`)
	is := parsed(t, `{apiVersion: v1, kind: ConfigMap, metadata: {name: new}}`)
	got, grew := merged(entries(was.objects), is.objects)
	expect(t, "inventory", got, []applied{
		{ref: ref{"", "ConfigMap", "default", "old"}, Version: "v1", UID: "u"},
		{ref: ref{"", "ConfigMap", "default", "new"}, Version: "v1"},
	})
	if _, again := merged(got, is.objects); !grew || again {
		t.Errorf("grew: %t, then %t", grew, again)
	}
}

func names(d directory) []string {
	var out []string
	for _, s := range d.sources {
		text := s.id.name
		for _, f := range s.files {
			text += " " + f.name
		}
		if s.err != nil {
			text += " !"
		}
		out = append(out, text)
	}
	return out
}

func one(text string) *fstest.MapFile { return &fstest.MapFile{Data: []byte(text)} }

func TestFilesAndDirectSubdirectoriesAreStacks(t *testing.T) {
	d := scan(fstest.MapFS{
		"web.yaml": one("a"), "db.yml": one("a"), "list.json": one("{}"), "README.md": one("no"), ".hidden.yaml": one("no"),
		"backup.yaml~": one("no"), "off.yaml.skip": one("no"), "app/1.yaml": one("a"), "app/2.yaml": one("b"), "app/notes.txt": one("no"),
		"app/deeper/3.yaml": one("no"), "twice.yaml": one("a"), "twice/a.yaml": one("a"),
	}, user, nil)
	expect(t, "stacks", names(d), []string{"app app/1.yaml app/2.yaml", "db db.yml", "list list.json", "twice !", "web web.yaml"})
	if d.gone != nil {
		t.Error(d.gone)
	}
}

func TestHashFollowsContentAndFileNames(t *testing.T) {
	hash := func(fsys fstest.MapFS) string { return scan(fsys, user, nil).sources[0].hash }
	a := hash(fstest.MapFS{"s/a.yaml": one("x"), "s/b.yaml": one("y")})
	if b := hash(fstest.MapFS{"s/a.yaml": one("x"), "s/b.yaml": one("y")}); a != b {
		t.Error("equal content has different hashes")
	}
	for _, other := range []fstest.MapFS{
		{"s/a.yaml": one("x"), "s/b.yaml": one("z")},
		{"s/a.yaml": one("xy"), "s/b.yaml": one("")},
		{"s/a.yaml": one("x"), "s/c.yaml": one("y")},
	} {
		if hash(other) == a {
			t.Errorf("%v has the hash of something else", other)
		}
	}
}

func TestDirectoriesThatMayBeIncompleteAreNotTrusted(t *testing.T) {
	for name, c := range map[string]struct {
		fsys fstest.MapFS
		skip []string
		gone bool
	}{
		"empty":                     {fstest.MapFS{}, nil, true},
		"nothing of ours":           {fstest.MapFS{"lost+found/x": one("")}, nil, false},
		"empty but marked":          {fstest.MapFS{marker: one("")}, nil, false},
		"all that is there skipped": {fstest.MapFS{"a.yaml": one("")}, []string{"a"}, false},
	} {
		if d := scan(c.fsys, user, c.skip); (d.gone != nil) != c.gone {
			t.Errorf("%s: gone is %v", name, d.gone)
		}
	}
	if d := scan(brokenFS{}, user, nil); d.gone == nil {
		t.Error("a directory that cannot be read is trusted")
	}
}

type brokenFS struct{ fstest.MapFS }

func (brokenFS) ReadDir(string) ([]fs.DirEntry, error) { return nil, fmt.Errorf("input/output error") }

func TestInventoryNamesAreValidAndDistinct(t *testing.T) {
	seen := map[string]stackID{}
	for _, id := range []stackID{
		{packaged, "web"}, {user, "web"}, {packaged, "user-web"}, {user, "Web"}, {user, "my app_1"}, {user, "my-app-1"}, {user, "my.app"},
		{user, "ümläut"}, {user, "..."}, {user, strings.Repeat("x", 255)},
	} {
		name := inventoryName(id)
		if first, ok := seen[name]; ok && !(id.name == "user-web" || first.name == "user-web") {
			t.Errorf("%v and %v are both %s", first, id, name)
		}
		seen[name] = id
		if notInNames.MatchString(strings.ReplaceAll(name, "-", "")) || len(name) > 253 || strings.HasSuffix(name, "-") {
			t.Errorf("%v: %q is no object name", id, name)
		}
	}
}

func TestPausesGrowAndEnd(t *testing.T) {
	if pause(0) != firstRetry || pause(1) != 2*firstRetry || pause(100) != lastRetry {
		t.Errorf("pauses %v %v %v", pause(0), pause(1), pause(100))
	}
}
