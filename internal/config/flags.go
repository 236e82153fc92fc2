package config

import (
	"path/filepath"
	"reflect"
	"strings"

	"github.com/spf13/pflag"
)

// configFlag and configEnv name the file itself.
const (
	configFlag = "config"
	configEnv  = envPrefix + "CONFIG"
)

// groupAnnotation carries a flag's section of the file, for FlagGroups.
const groupAnnotation = "k1s.io/config-section"

// Flags are the settings given on a command line, see RegisterFlags.
type Flags struct {
	file        string
	fileFlag    *pflag.Flag
	defaultFile string
	values      []*flagValue
}

// RegisterFlags adds --config and a flag for every field that has one to fs. defaultFile is the
// configuration file where neither --config nor K1S_CONFIG names another.
func RegisterFlags(fs *pflag.FlagSet, defaultFile string) *Flags {
	f := &Flags{defaultFile: defaultFile}
	fs.StringVar(&f.file, configFlag, defaultFile, "configuration `file`; drop-ins are read from config.d beside it")
	f.fileFlag = fs.Lookup(configFlag)
	for _, field := range Fields() {
		if field.Flag == "" {
			continue
		}
		v := &flagValue{field: field, typ: fieldType(field.Path)}
		usage := field.Doc
		if len(field.Enum) > 0 && !strings.Contains(usage, field.Enum[0]) {
			usage += " (" + strings.Join(field.Enum, ", ") + ")"
		}
		flag := fs.VarPF(v, field.Flag, "", usage)
		if v.typ.Kind() == reflect.Bool {
			flag.NoOptDefVal = "true"
		}
		flag.Annotations = map[string][]string{groupAnnotation: {section(field.Path)}}
		f.values = append(f.values, v)
	}
	return f
}

// Sources are where this command line and this environment (in the form of os.Environ) tell to read
// from. A file that was named must exist, the default one need not.
func (f *Flags) Sources(environ []string) Sources {
	s := Sources{File: f.defaultFile, Env: environ, Flags: f}
	if v := lookupEnv(environ, configEnv); v != "" {
		s.File, s.FileMustExist = v, true
	}
	if f.fileFlag != nil && f.fileFlag.Changed {
		s.File, s.FileMustExist = f.file, true
	}
	if s.File != "" && s.File != stdinFile {
		s.DropIns = filepath.Join(filepath.Dir(s.File), "config.d")
	}
	return s
}

// Given names the settings that were set on the command line, with their dashes.
func (f *Flags) Given() []string {
	var list []string
	for _, v := range f.values {
		if len(v.texts) > 0 {
			list = append(list, "--"+v.field.Flag)
		}
	}
	return list
}

// apply sets what the command line says.
func (f *Flags) apply(cfg *Config, origins Origins) []Problem {
	if f == nil {
		return nil
	}
	var problems []Problem
	for _, v := range f.values {
		if len(v.texts) > 0 {
			problems = append(problems, applyText(cfg, v.field, v.texts, Origin{Kind: FromFlag, Name: "--" + v.field.Flag}, origins)...)
		}
	}
	return problems
}

// flagValue is one setting's flag. It keeps the texts, because lists and maps replace or extend what
// the file says only when everything is known.
type flagValue struct {
	field Field
	typ   reflect.Type
	texts []string
}

func (v *flagValue) String() string {
	if len(v.texts) > 0 {
		return strings.Join(v.texts, ",")
	}
	return v.field.Default // also when pflag asks for the text of the default
}

// Set refuses a wrong value at once, so that the command line is named in the error.
func (v *flagValue) Set(text string) error {
	if err := setText(reflect.New(v.typ).Elem(), []string{text}, strings.Join(v.field.Enum, ",")); err != nil {
		return err
	}
	if k := v.typ.Kind(); k != reflect.Slice && k != reflect.Map {
		v.texts = nil
	}
	v.texts = append(v.texts, text)
	return nil
}

// Type is what --help shows for the value.
func (v *flagValue) Type() string {
	switch v.typ.Kind() {
	case reflect.Bool:
		return "bool" // pflag prints no placeholder for this word
	case reflect.Int:
		return "int"
	case reflect.Slice:
		return "a,b,…"
	case reflect.Map:
		return "key=value,…"
	default:
		return "string"
	}
}

// FlagGroup is the part of a command's flags that belongs to one section of the file.
type FlagGroup struct {
	Title string // the section, e.g. "network"; "" for flags that are no settings
	Flags *pflag.FlagSet
}

// FlagGroups parts fs for --help: first what is no setting, then the sections in the order of the file.
func FlagGroups(fs *pflag.FlagSet) []FlagGroup {
	groups := []FlagGroup{{Flags: pflag.NewFlagSet("", pflag.ContinueOnError)}}
	index := map[string]int{"": 0}
	for _, f := range Fields() {
		if f.Flag == "" {
			continue
		}
		if title := section(f.Path); index[title] == 0 && title != "" {
			index[title] = len(groups)
			groups = append(groups, FlagGroup{Title: title, Flags: pflag.NewFlagSet(title, pflag.ContinueOnError)})
		}
	}
	fs.VisitAll(func(f *pflag.Flag) {
		title := ""
		if a := f.Annotations[groupAnnotation]; len(a) > 0 {
			title = a[0]
		}
		groups[index[title]].Flags.AddFlag(f)
	})
	filled := groups[:0]
	for _, g := range groups {
		if g.Flags.HasFlags() {
			g.Flags.SortFlags = g.Title == ""
			filled = append(filled, g)
		}
	}
	return filled
}

// section is the title a field is shown under; fields directly below spec share "general".
func section(path string) string {
	parts := strings.Split(path, ".")
	if len(parts) < 3 {
		return "general"
	}
	return parts[1]
}

// fieldType is the Go type of the field at path, which has no free parts.
func fieldType(path string) reflect.Type {
	return fieldValue(&Config{}, path).Type()
}

// fieldValue is the place of the field at path in cfg.
func fieldValue(cfg *Config, path string) reflect.Value {
	v := reflect.ValueOf(cfg).Elem()
	for _, name := range strings.Split(path, ".") {
		t := v.Type()
		for i := range t.NumField() {
			if jsonName(t.Field(i)) == name {
				v = v.Field(i)
				break
			}
		}
	}
	return v
}

// applyText sets one field from text and records where that came from.
func applyText(cfg *Config, field Field, texts []string, origin Origin, origins Origins) []Problem {
	v := fieldValue(cfg, field.Path)
	if err := setText(v, texts, strings.Join(field.Enum, ",")); err != nil {
		return []Problem{{Path: field.Path, Message: err.Error(), Hint: hintOf(err), Origin: origin}}
	}
	if v.Kind() != reflect.Map || v.Len() == 0 {
		origins.set(field.Path, origin, false)
		return nil
	}
	origins.set(field.Path, origin, true)
	for _, e := range elements(texts) {
		key, _, _ := strings.Cut(e, "=")
		origins.set(keyPath(field.Path, key), origin, false)
	}
	return nil
}
