package config

import (
	"reflect"
	"strings"
	"unicode"

	"k1s.io/k1s/internal/errs"
)

// Field describes one place of the configuration file, as `config explain` and the reference show it.
type Field struct {
	Path    string   `json:"path"`              // as in the file, e.g. "spec.api.port"; <name> stands for a key the user chooses
	Flag    string   `json:"flag,omitempty"`    // without dashes; "" if there is none
	Env     string   `json:"env,omitempty"`     // "" if there is none
	Type    string   `json:"type"`              // for people: "integer", "list of strings" …
	Default string   `json:"default,omitempty"` // "" if the field is empty by default
	Enum    []string `json:"enum,omitempty"`    // the values allowed; nil if not limited to some
	Doc     string   `json:"doc"`
	Example string   `json:"example,omitempty"` // a value as it would stand in the file; "" if the default serves
	Section bool     `json:"section,omitempty"` // holds other fields and no value of its own
}

// Name is the last part of the path.
func (f Field) Name() string { return f.Path[strings.LastIndexByte(f.Path, '.')+1:] }

// Default is the configuration of a node whose user has written nothing.
func Default() Config {
	c := Config{APIVersion: APIVersion, Kind: Kind}
	setDefaults(reflect.ValueOf(&c.Spec).Elem())
	return c
}

// setDefaults sets every field below the struct v to its default.
func setDefaults(v reflect.Value) {
	for i := range v.NumField() {
		resetField(v.Field(i), v.Type().Field(i))
	}
}

// resetField gives one field the value of its `default` tag, or the zero value.
func resetField(v reflect.Value, sf reflect.StructField) {
	v.SetZero()
	if v.Kind() == reflect.Struct {
		setDefaults(v)
		return
	}
	if def := sf.Tag.Get("default"); def != "" {
		if err := setText(v, []string{def}, sf.Tag.Get("enum")); err != nil {
			panic("config: default of " + sf.Name + ": " + err.Error()) // a mistake in the struct tag; every test meets it
		}
	}
}

// Fields lists everything below spec in the order of the file, sections before their fields.
func Fields() []Field {
	return appendFields(nil, "spec", reflect.TypeFor[Spec]())
}

func appendFields(list []Field, parent string, t reflect.Type) []Field {
	for i := range t.NumField() {
		sf := t.Field(i)
		f := Field{
			Path:    parent + "." + jsonName(sf),
			Type:    typeName(sf.Type),
			Default: sf.Tag.Get("default"),
			Doc:     sf.Tag.Get("doc"),
			Example: sf.Tag.Get("example"),
			Section: sf.Type.Kind() == reflect.Struct,
		}
		if f.Default == "" && sf.Type.Kind() == reflect.Bool {
			f.Default = "false"
		}
		if e := sf.Tag.Get("enum"); e != "" {
			f.Enum = strings.Split(e, ",")
		}
		if name := sf.Tag.Get("flag"); !f.Section && name != "-" {
			if f.Flag = name; name == "" {
				f.Flag = flagName(f.Path)
			}
			f.Env = envName(f.Flag)
		}
		list = append(list, f)
		switch elem := sf.Type; {
		case f.Section:
			list = appendFields(list, f.Path, elem)
		case elem.Kind() == reflect.Map && elem.Elem().Kind() == reflect.Struct:
			sub := appendFields(nil, f.Path+".<name>", elem.Elem())
			for i := range sub { // a path with a free part in it can be no flag
				sub[i].Flag, sub[i].Env = "", ""
			}
			list = append(list, sub...)
		}
	}
	return list
}

// Lookup finds a field by its path; the leading "spec." may be left out. The error names the nearest
// field and is of kind errs.NotFound.
func Lookup(path string) (Field, error) {
	want := strings.TrimPrefix(strings.Trim(path, "."), "spec.")
	var names []string
	for _, f := range Fields() {
		if matchPath(strings.TrimPrefix(f.Path, "spec."), want) || path == f.Flag || path == "--"+f.Flag || path == f.Env {
			return f, nil
		}
		names = append(names, strings.TrimPrefix(f.Path, "spec."))
	}
	err := errs.New(errs.NotFound, "the configuration has no field %q", path)
	if near := nearestPath(want, names); near != "" {
		return Field{}, errs.Hint(err, "did you mean %s?", near)
	}
	return Field{}, errs.Hint(err, "run: k1s config explain")
}

// matchPath compares part by part, <name> matches anything.
func matchPath(pattern, path string) bool {
	p, q := strings.Split(pattern, "."), strings.Split(path, ".")
	if len(p) != len(q) {
		return false
	}
	for i := range p {
		if p[i] != q[i] && p[i] != "<name>" {
			return false
		}
	}
	return true
}

// nearestPath is nearest, and besides it finds a field by its last part alone ("podCIDR").
func nearestPath(want string, paths []string) string {
	if near := nearest(want, paths); near != "" {
		return near
	}
	last := want[strings.LastIndexByte(want, '.')+1:]
	for _, p := range paths {
		if strings.EqualFold(p[strings.LastIndexByte(p, '.')+1:], last) {
			return p
		}
	}
	return ""
}

func jsonName(sf reflect.StructField) string {
	name, _, _ := strings.Cut(sf.Tag.Get("json"), ",")
	return name
}

func omitEmpty(sf reflect.StructField) bool {
	_, opts, _ := strings.Cut(sf.Tag.Get("json"), ",")
	return opts == "omitempty"
}

// flagName turns spec.network.podCIDR into network-pod-cidr.
func flagName(path string) string {
	parts := strings.Split(strings.TrimPrefix(path, "spec."), ".")
	for i, p := range parts {
		parts[i] = kebab(p)
	}
	return strings.Join(parts, "-")
}

// envPrefix opens the name of every variable that is a setting.
const envPrefix = "K1S_"

// envName turns network-pod-cidr into K1S_NETWORK_POD_CIDR.
func envName(flag string) string {
	return envPrefix + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}

// kebab parts words at capitals and keeps acronyms whole: podCIDR is pod-cidr, APIPort is api-port.
func kebab(s string) string {
	var b strings.Builder
	r := []rune(s)
	for i, c := range r {
		if i > 0 && unicode.IsUpper(c) &&
			(!unicode.IsUpper(r[i-1]) || i+1 < len(r) && unicode.IsLower(r[i+1])) {
			b.WriteByte('-')
		}
		b.WriteRune(unicode.ToLower(c))
	}
	return b.String()
}

func typeName(t reflect.Type) string {
	switch t.Kind() {
	case reflect.String:
		return "string"
	case reflect.Int:
		return "integer"
	case reflect.Bool:
		return "boolean"
	case reflect.Slice:
		return "list of " + typeName(t.Elem()) + "s"
	case reflect.Map:
		if t.Elem().Kind() == reflect.Interface {
			return "free-form map"
		}
		return "map of " + typeName(t.Elem()) + "s"
	default:
		return "section"
	}
}

// YAML is the field with its example, or else its default, as it would stand in a file.
func (f Field) YAML() string {
	value := f.Example
	if value == "" {
		value = f.Default
	}
	var b strings.Builder
	parts := strings.Split(f.Path, ".")
	for i, p := range parts {
		if p == "<name>" {
			p = "kube-apiserver" // the only free part there is names a component
		}
		b.WriteString(strings.Repeat("  ", i) + p + ":")
		if i == len(parts)-1 && value != "" {
			b.WriteString(" " + value)
		}
		b.WriteByte('\n')
	}
	return b.String()
}
