package strictyaml

import "testing"

func TestErrorsNameFileAndLine(t *testing.T) {
	for content, want := range map[string]string{
		"":                        "",
		"a: 1":                    "",
		"a: 1\nb: 2":              `f.yaml:2: unknown key "b"`,
		"a: [x":                   "f.yaml:1: did not find expected ',' or ']'",
		"a: x":                    "f.yaml:1: cannot unmarshal !!str `x` into int",
		"a: 1\n---\na: 2":         "f.yaml: only one YAML document is read, there are more",
		"a: y\nb: 2\nc: {d: 1}\n": "f.yaml:1: cannot unmarshal !!str `y` into int\nf.yaml:2: unknown key \"b\"\nf.yaml:3: unknown key \"c\"",
	} {
		var v struct {
			A int `yaml:"a"`
		}
		got := ""
		if err := Decode("f.yaml", []byte(content), &v); err != nil {
			got = err.Error()
		}
		if got != want {
			t.Errorf("%q gives\n%s\nwant\n%s", content, got, want)
		}
	}
}
