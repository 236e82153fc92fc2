package main

import (
	"bytes"
	"cmp"
	"context"
	"debug/buildinfo"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime/debug"
	"slices"
	"strings"
)

// component is something of others that the released file contains.
type component struct {
	Name     string   `json:"name"`
	Version  string   `json:"version"`
	License  string   `json:"license"` // SPDX expression, or NOASSERTION
	Kind     string   `json:"kind"`    // "go" or "debian"
	Programs []string `json:"programs"`
	Main     bool     `json:"main,omitempty"` // one of the programs by itself, not a library in one

	texts []text
}

// text is one licence or notice file.
type text struct{ file, body string }

// runNotice reads out of finished programs which Go modules were linked into them, takes a list of Debian
// packages, and writes NOTICE (all licence texts), components.json and sbom.spdx.json. Order and
// content depend on nothing but the inputs.
func runNotice(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("notice", flag.ContinueOnError)
	out := flags.String("o", "", "directory to write to")
	debian := flags.String("debian", "", "list of Debian packages: name version copyright-file")
	version := flags.String("version", "", "version of k1s")
	upstream := flags.String("main", "", "comma-separated modules that are programs of their own")
	copied := map[string][]string{} // by program
	flags.Func("copied", "PROGRAM=MODULE whose code `upstream` copied into the program; may be repeated", func(s string) error {
		program, module, ok := strings.Cut(s, "=")
		if !ok {
			return fmt.Errorf("%q is not PROGRAM=MODULE", s)
		}
		copied[program] = append(copied[program], module)
		return nil
	})
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *out == "" || flags.NArg() == 0 {
		return errors.New("notice needs -o and programs")
	}
	all, err := modules(ctx, flags.Args(), strings.Split(*upstream, ","), copied)
	if err != nil {
		return err
	}
	if *debian != "" {
		more, err := debianPackages(*debian)
		if err != nil {
			return err
		}
		all = append(all, more...)
	}
	slices.SortFunc(all, func(a, b component) int {
		return cmp.Or(-cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Name, b.Name), cmp.Compare(a.Version, b.Version))
	})
	var missing []string
	for _, c := range all {
		if len(c.texts) == 0 {
			missing = append(missing, c.Name+" "+c.Version)
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("no licence text found for %s", strings.Join(missing, ", "))
	}
	components, err := json.MarshalIndent(all, "", " ")
	if err != nil {
		return err
	}
	sbom, err := spdx(all, *version)
	if err != nil {
		return err
	}
	return errors.Join(
		writeIfChanged(filepath.Join(*out, "NOTICE"), notice(all)),
		writeIfChanged(filepath.Join(*out, "components.json"), append(components, '\n')),
		writeIfChanged(filepath.Join(*out, "sbom.spdx.json"), append(sbom, '\n')))
}

// modules collects what is linked into the programs. Of copied packages a program itself knows no module.
func modules(ctx context.Context, programs, mains []string, copied map[string][]string) ([]component, error) {
	infos := make([]*buildinfo.BuildInfo, len(programs))
	paths := map[string]bool{}
	for i, file := range programs {
		info, err := buildinfo.ReadFile(file)
		if err != nil {
			return nil, err
		}
		for _, path := range copied[filepath.Base(file)] {
			m, err := module(ctx, path)
			if err != nil {
				return nil, err
			}
			if !slices.ContainsFunc(info.Deps, func(d *debug.Module) bool { return d.Path == path }) {
				info.Deps = append(info.Deps, m)
			}
		}
		for _, d := range linked(info) {
			paths[d.Path] = true
		}
		infos[i] = info
	}
	dirs, err := moduleDirs(ctx, slices.Sorted(maps.Keys(paths)))
	if err != nil {
		return nil, err
	}
	found := map[string]*component{}
	add := func(name, version, program, dir string) error {
		key := name + "@" + version
		c := found[key]
		if c == nil {
			texts, err := licenceTexts(dir)
			if err != nil {
				return fmt.Errorf("licence of %s: %w", key, err)
			}
			c = &component{Name: name, Version: version, Kind: "go", License: classify(texts), Main: slices.Contains(mains, name), texts: texts}
			found[key] = c
		}
		c.Programs = append(c.Programs, program)
		return nil
	}
	for i, info := range infos {
		program := filepath.Base(programs[i])
		if err := add("go", strings.TrimPrefix(info.GoVersion, "go"), program, goroot(ctx)); err != nil {
			return nil, err
		}
		for _, d := range linked(info) {
			m := d
			if d.Replace != nil {
				m = d.Replace
			}
			if err := add(m.Path, m.Version, program, dirs[d.Path]); err != nil {
				return nil, err
			}
		}
	}
	all := make([]component, 0, len(found))
	for _, c := range found {
		slices.Sort(c.Programs)
		all = append(all, *c)
	}
	return all, nil
}

// linked are the modules of others in a program. For upstream's own programs the main module counts.
func linked(info *buildinfo.BuildInfo) []*debug.Module {
	var all []*debug.Module
	for _, d := range append(slices.Clone(info.Deps), &info.Main) {
		if d.Path != "" && d.Path != "k1s.io/k1s" {
			all = append(all, d)
		}
	}
	return all
}

func goroot(ctx context.Context) string {
	b, err := exec.CommandContext(ctx, "go", "env", "GOROOT").Output()
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// module is what go.mod says of a module.
func module(ctx context.Context, path string) (*debug.Module, error) {
	b, err := exec.CommandContext(ctx, "go", "list", "-m", "-json", path).Output()
	if err != nil {
		return nil, fmt.Errorf("looking up module %s: %w", path, err)
	}
	var m debug.Module
	if err := json.Unmarshal(b, &m); err != nil {
		return nil, fmt.Errorf("looking up module %s: %w", path, err)
	}
	return &m, nil
}

// moduleDirs maps the paths of modules to their directories in the module cache.
func moduleDirs(ctx context.Context, paths []string) (map[string]string, error) {
	cmd := exec.CommandContext(ctx, "go", append([]string{"list", "-m", "-f", "{{.Path}}\t{{.Dir}}"}, paths...)...)
	var msg bytes.Buffer
	cmd.Stderr = &msg
	b, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("listing modules: %w: %s", err, msg.Bytes())
	}
	dirs := map[string]string{}
	for line := range strings.Lines(string(b)) {
		path, dir, _ := strings.Cut(strings.TrimRight(line, "\n"), "\t")
		if dir == "" {
			return nil, fmt.Errorf("module %s is not in the module cache; run: go mod download %s", path, path)
		}
		dirs[path] = dir
	}
	return dirs, nil
}

var licenceFile = regexp.MustCompile(`(?i)^(licen[cs]es?|copying|notice|patents|unlicense)([.-].*)?$`)

// licenceTexts reads the licence files in a module's top directory and below its third_party directories.
func licenceTexts(dir string) ([]text, error) {
	var texts []text
	take := func(rel string) error {
		b, err := os.ReadFile(filepath.Join(dir, rel))
		if err != nil {
			return err
		}
		if strings.HasSuffix(rel, ".go") || len(b) == 0 {
			return nil
		}
		texts = append(texts, text{filepath.ToSlash(rel), strings.TrimSpace(strings.ReplaceAll(string(b), "\r\n", "\n")) + "\n"})
		return nil
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		if e.Type().IsRegular() && licenceFile.MatchString(e.Name()) {
			if err := take(e.Name()); err != nil {
				return nil, err
			}
		}
	}
	third := filepath.Join(dir, "third_party")
	if _, err := os.Stat(third); err != nil {
		return texts, nil
	}
	err = filepath.WalkDir(third, func(name string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() || !licenceFile.MatchString(d.Name()) {
			return err
		}
		rel, err := filepath.Rel(dir, name)
		if err != nil {
			return err
		}
		return take(rel)
	})
	return texts, err
}

// classify recognises the licences that occur among our dependencies by sentences that are only in them.
func classify(texts []text) string {
	var ids []string
	for _, t := range texts {
		if strings.Contains(t.file, "/") { // of a part, not of the whole
			continue
		}
		s := strings.Join(strings.Fields(t.body), " ")
		has := func(x string) bool { return strings.Contains(s, x) }
		id := ""
		switch {
		case has("Apache License Version 2.0") || has("apache.org/licenses/LICENSE-2.0"):
			id = "Apache-2.0"
		case has("Mozilla Public License Version 2.0") || has("Mozilla Public License, version 2.0"):
			id = "MPL-2.0"
		case has("GNU LESSER GENERAL PUBLIC LICENSE"):
			id = "LGPL-2.1-or-later"
		case has("Redistribution and use in source and binary forms"):
			id = "BSD-2-Clause"
			if has("endorse or promote products") {
				id = "BSD-3-Clause"
			}
		case has("Permission is hereby granted, free of charge"):
			id = "MIT"
		case has("Permission to use, copy, modify, and/or distribute") || has("Permission to use, copy, modify, and distribute"):
			id = "ISC"
		case has("This is free and unencumbered software"):
			id = "Unlicense"
		case has("CC0 1.0 Universal"):
			id = "CC0-1.0"
		}
		if id != "" && !slices.Contains(ids, id) {
			ids = append(ids, id)
		}
	}
	if len(ids) == 0 {
		return "NOASSERTION"
	}
	slices.Sort(ids)
	return strings.Join(ids, " AND ")
}

func debianPackages(list string) ([]component, error) {
	b, err := os.ReadFile(list)
	if err != nil {
		return nil, err
	}
	var all []component
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) != 3 {
			return nil, fmt.Errorf("%s: %q is not NAME VERSION COPYRIGHT-FILE", list, strings.TrimSpace(line))
		}
		body, err := os.ReadFile(f[2])
		if err != nil {
			return nil, fmt.Errorf("licence of Debian package %s: %w", f[0], err)
		}
		c := component{Name: f[0], Version: f[1], Kind: "debian", License: "NOASSERTION", Programs: []string{"nft"}, Main: f[0] == "nftables",
			texts: []text{{"copyright", strings.TrimSpace(string(body)) + "\n"}}}
		switch f[0] {
		case "libc6-dev":
			c.Programs = []string{"k1s-kube", "runc"}
		case "libseccomp-dev", "libseccomp2":
			c.Programs = []string{"runc"}
		}
		all = append(all, c)
	}
	return all, nil
}

// notice prints every distinct text once, after the names of all it applies to.
func notice(all []component) []byte {
	var b bytes.Buffer
	b.WriteString("k1s carries programs and libraries of others. This file names them with their licences.\n")
	names := map[string][]string{}
	var bodies []string
	for _, c := range all {
		fmt.Fprintf(&b, "\n%s %s (%s)", c.Name, c.Version, c.License)
		for _, t := range c.texts {
			if names[t.body] == nil {
				bodies = append(bodies, t.body)
			}
			names[t.body] = append(names[t.body], fmt.Sprintf("%s %s: %s", c.Name, c.Version, t.file))
		}
	}
	b.WriteString("\n")
	for _, body := range bodies {
		fmt.Fprintf(&b, "\n%s\n%s\n\n%s", strings.Repeat("=", 80), strings.Join(names[body], "\n"), body)
	}
	return b.Bytes()
}

var notInID = regexp.MustCompile(`[^A-Za-z0-9.-]+`)

// spdx makes an SPDX 2.3 document: k1s and what it contains. The creation time is fixed, because two
// builds of one commit must be the same file.
func spdx(all []component, version string) ([]byte, error) {
	type ref struct {
		Category string `json:"referenceCategory"`
		Type     string `json:"referenceType"`
		Locator  string `json:"referenceLocator"`
	}
	type pkg struct {
		Name      string `json:"name"`
		ID        string `json:"SPDXID"`
		Version   string `json:"versionInfo"`
		Download  string `json:"downloadLocation"`
		Analyzed  bool   `json:"filesAnalyzed"`
		Concluded string `json:"licenseConcluded"`
		Declared  string `json:"licenseDeclared"`
		Copyright string `json:"copyrightText"`
		Refs      []ref  `json:"externalRefs,omitempty"`
	}
	type relation struct {
		From string `json:"spdxElementId"`
		To   string `json:"relatedSpdxElement"`
		Type string `json:"relationshipType"`
	}
	const none = "NOASSERTION"
	root := pkg{Name: "k1s", ID: "SPDXRef-k1s", Version: version, Download: none, Concluded: none, Declared: none, Copyright: none}
	packages := []pkg{root}
	relations := []relation{{"SPDXRef-DOCUMENT", root.ID, "DESCRIBES"}}
	for _, c := range all {
		p := pkg{Name: c.Name, Version: c.Version, Download: none, Concluded: none, Declared: c.License, Copyright: none,
			ID: "SPDXRef-" + c.Kind + "-" + notInID.ReplaceAllString(c.Name+"-"+c.Version, "-")}
		kind := "golang"
		if c.Kind == "debian" {
			kind = "deb/debian"
		} else if c.Name != "go" {
			p.Download = "https://" + c.Name
		} else {
			kind = "generic"
		}
		escaped := strings.ReplaceAll(c.Version, "+", "%2B") // of what is in versions, all that is escaped in a purl
		p.Refs = []ref{{"PACKAGE-MANAGER", "purl", "pkg:" + kind + "/" + c.Name + "@" + escaped}}
		packages = append(packages, p)
		relations = append(relations, relation{root.ID, p.ID, "CONTAINS"})
	}
	content, err := json.Marshal(packages)
	if err != nil {
		return nil, err
	}
	return json.MarshalIndent(map[string]any{
		"spdxVersion":       "SPDX-2.3",
		"dataLicense":       "CC0-1.0",
		"SPDXID":            "SPDXRef-DOCUMENT",
		"name":              "k1s-" + version,
		"documentNamespace": "https://k1s.io/spdx/" + sum(content),
		"creationInfo":      map[string]any{"created": "1970-01-01T00:00:00Z", "creators": []string{"Tool: k1s-pack"}},
		"packages":          packages,
		"relationships":     relations,
	}, "", " ")
}
