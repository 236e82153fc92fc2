package config

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// stdinFile as the name of a file means standard input.
const stdinFile = "-"

// Sources say where a configuration is read from. The zero value gives the defaults.
type Sources struct {
	// File is the configuration file; "" for none, "-" for Stdin.
	File string
	// FileMustExist makes a missing file a problem: the user has named it.
	FileMustExist bool
	// Inline are settings that are part of other documents, applied after File.
	Inline []Inline
	// DropIns is a directory whose *.yaml files are applied after File, in lexical order; "" or a missing
	// one for none.
	DropIns string
	Stdin   io.Reader
	// Env is the environment in the form of os.Environ. Empty variables count as not set.
	Env []string
	// OtherEnv are variables that start with K1S_ and are no settings, so that they are not warned about.
	OtherEnv []string
	// Flags are the settings of the command line; nil for none.
	Flags *Flags
}

// Loaded is what was read.
type Loaded struct {
	Config  Config
	Origins Origins
	// Files were read, in this order.
	Files []string
	// Warnings are sentences about what has no effect and was probably meant to.
	Warnings []string
}

// Load reads all sources; what comes later wins: defaults, file, drop-ins, environment, flags. Maps are
// merged, lists replaced, and an explicit null brings the default back. The error is of kind
// errs.Invalid and holds every problem (see InvalidError); Loaded then holds what could be read.
func Load(src Sources) (Loaded, error) {
	l, problems := load(src)
	return l, Invalid(problems)
}

// Effective is Load and Validate in one, with the problems of both in one error. known.Origins is
// filled in.
func Effective(src Sources, known Known) (Loaded, error) {
	l, problems := load(src)
	known.Origins = l.Origins
	return l, Invalid(append(problems, Validate(l.Config, known)...))
}

func load(src Sources) (Loaded, []Problem) {
	l := Loaded{Config: Default(), Origins: Origins{}}
	var problems []Problem
	read := func(name string, data []byte, err error) {
		if err != nil {
			problems = append(problems, fileProblem(name, err))
			return
		}
		l.Files = append(l.Files, name)
		problems = append(problems, decodeFile(name, data, &l.Config, l.Origins)...)
	}
	switch {
	case src.File == stdinFile && src.Stdin != nil:
		data, err := io.ReadAll(io.LimitReader(src.Stdin, maxFileBytes+1))
		read("standard input", data, err)
	case src.File != "":
		data, err := readFile(src.File)
		if src.FileMustExist || !errors.Is(err, fs.ErrNotExist) {
			read(src.File, data, err)
		}
	}
	for _, in := range src.Inline {
		problems = append(problems, in.apply(&l.Config, l.Origins)...)
	}
	dropIns, warnings, err := listDropIns(src.DropIns)
	if err != nil {
		problems = append(problems, fileProblem(src.DropIns, err))
	}
	l.Warnings = append(l.Warnings, warnings...)
	for _, name := range dropIns {
		data, err := readFile(name)
		read(name, data, err)
	}
	envProblems, warnings := applyEnv(&l.Config, src, l.Origins)
	problems = append(problems, envProblems...)
	l.Warnings = append(l.Warnings, warnings...)
	problems = append(problems, src.Flags.apply(&l.Config, l.Origins)...)
	return l, problems
}

// fileProblem is a file that cannot be read at all.
func fileProblem(name string, err error) Problem {
	p := Problem{Message: err.Error(), Origin: Origin{Kind: FromFile, Name: name}, Err: err}
	var pe *fs.PathError
	if errors.As(err, &pe) { // the name is in the origin already
		p.Message = "cannot be read: " + pe.Err.Error()
	}
	if errors.Is(err, fs.ErrPermission) {
		p.Hint = "run k1s as root, or make the file readable"
	}
	return p
}

// readFile reads a regular file and at most a byte more than is allowed. Anything else than a file
// could block for ever.
func readFile(name string) ([]byte, error) {
	st, err := os.Stat(name)
	switch {
	case err != nil:
		return nil, err
	case st.IsDir():
		return nil, fmt.Errorf("is a directory, and must be a file")
	case !st.Mode().IsRegular():
		return nil, fmt.Errorf("is no regular file")
	}
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	return io.ReadAll(io.LimitReader(f, maxFileBytes+1))
}

// listDropIns lists the *.yaml files of dir and warns about those that look as if they should be read.
func listDropIns(dir string) (files, warnings []string, err error) {
	if dir == "" {
		return nil, nil, nil
	}
	entries, err := os.ReadDir(dir) // sorted by name
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, err
	}
	for _, e := range entries {
		name := filepath.Join(dir, e.Name())
		switch ext := strings.ToLower(filepath.Ext(e.Name())); {
		case strings.HasPrefix(e.Name(), "."):
		case filepath.Ext(e.Name()) == ".yaml":
			files = append(files, name)
		case ext == ".yml" || ext == ".yaml" || ext == ".json":
			warnings = append(warnings, fmt.Sprintf("%s is not read: the name of a drop-in ends in .yaml", name))
		}
	}
	return files, warnings, nil
}

// applyEnv sets what K1S_* variables say.
func applyEnv(cfg *Config, src Sources, origins Origins) (problems []Problem, warnings []string) {
	known := map[string]bool{configEnv: true}
	names := []string{configEnv}
	for _, o := range src.OtherEnv {
		known[o] = true
	}
	for _, f := range Fields() {
		if f.Env == "" {
			continue
		}
		known[f.Env] = true
		names = append(names, f.Env)
		if v := lookupEnv(src.Env, f.Env); v != "" {
			problems = append(problems, applyText(cfg, f, []string{v}, Origin{Kind: FromEnvironment, Name: f.Env}, origins)...)
		}
	}
	for _, e := range src.Env {
		name, value, _ := strings.Cut(e, "=")
		if !strings.HasPrefix(strings.ToUpper(name), envPrefix) || known[name] || value == "" {
			continue
		}
		w := fmt.Sprintf("the variable %s has no effect: there is no such setting", shorten(name))
		if near := nearest(name, names); near != "" {
			w += "; did you mean " + near + "?"
		}
		warnings = append(warnings, w)
	}
	return problems, warnings
}

// lookupEnv finds a variable in the form of os.Environ; the last one counts, as in exec.
func lookupEnv(environ []string, name string) string {
	for i := len(environ) - 1; i >= 0; i-- {
		if k, v, _ := strings.Cut(environ[i], "="); k == name {
			return v
		}
	}
	return ""
}
