package addonmanager

import (
	"reflect"
	"testing"

	"sigs.k8s.io/yaml"
)

func TestFieldsOfOthersAreLeftOut(t *testing.T) {
	const obj = `
metadata:
  annotations:
    storageclass.kubernetes.io/is-default-class: "true"
    storageclass: x
  finalizers: [a.b/c, "d]\"e"]
spec:
  replicas: 1
  list: [1, 2]
  template:
    spec:
      containers:
      - name: a
        image: one
        ports: [{containerPort: 53, protocol: UDP, name: dns}, {containerPort: 53, protocol: TCP}, {containerPort: 80, name: web}]
        env: [{name: "x,y=]", value: v}]
`
	for path, change := range map[string]struct {
		at   []any // where the field is
		want bool
	}{
		".spec.replicas": {[]any{"spec", "replicas"}, true},
		".metadata.annotations.storageclass.kubernetes.io/is-default-class":                    {[]any{"metadata", "annotations", "storageclass.kubernetes.io/is-default-class"}, true},
		".metadata.annotations.storageclass":                                                   {[]any{"metadata", "annotations", "storageclass"}, true},
		`.spec.template.spec.containers[name="a"].image`:                                       {[]any{"spec", "template", "spec", "containers", 0, "image"}, true},
		`.spec.template.spec.containers[name="a"].env[name="x,y=]"].value`:                     {[]any{"spec", "template", "spec", "containers", 0, "env", 0, "value"}, true},
		`.spec.template.spec.containers[name="a"].env[name="x,y=]"]`:                           {[]any{"spec", "template", "spec", "containers", 0, "env", 0}, true},
		`.spec.template.spec.containers[name="a"].ports[containerPort=53,protocol="UDP"].name`: {[]any{"spec", "template", "spec", "containers", 0, "ports", 0, "name"}, true},
		`.spec.template.spec.containers[name="a"].ports[containerPort=80,protocol="TCP"].name`: {[]any{"spec", "template", "spec", "containers", 0, "ports", 2, "name"}, true}, // the protocol is a default
		`.metadata.finalizers[="a.b/c"]`:                                                       {[]any{"metadata", "finalizers", 0}, true},
		`.metadata.finalizers[="d]\"e"]`:                                                       {[]any{"metadata", "finalizers", 1}, true},
		`.spec.list[1]`:                                                                        {[]any{"spec", "list", 1}, true},
		`.spec.template.spec.containers[name="b"].image`:                                       {nil, false},
		".spec.replica": {nil, false},
		".spec.paused":  {nil, false},
		"":              {nil, false},
	} {
		t.Run(path, func(t *testing.T) {
			var in, want any
			for _, v := range []*any{&in, &want} {
				if err := yaml.Unmarshal([]byte(obj), v); err != nil {
					t.Fatal(err)
				}
			}
			before := clone(in.(map[string]any), "", nil)
			got, ok := without(in, path)
			if change.want {
				want = cutOut(want, change.at)
			}
			if ok != change.want || !reflect.DeepEqual(got, want) {
				t.Errorf("%t\n got %v\nwant %v", ok, got, want)
			}
			if !reflect.DeepEqual(in, any(before)) {
				t.Error("the object itself was changed")
			}
		})
	}
}

// cutOut removes what is at a place that is known.
func cutOut(v any, at []any) any {
	switch key := at[0].(type) {
	case string:
		m := v.(map[string]any)
		if len(at) == 1 {
			delete(m, key)
			return m
		}
		m[key] = cutOut(m[key], at[1:])
		return m
	default:
		l, i := v.([]any), at[0].(int)
		if len(at) == 1 {
			return append(l[:i:i], l[i+1:]...)
		}
		l[i] = cutOut(l[i], at[1:])
		return l
	}
}
