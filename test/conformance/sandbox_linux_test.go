package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestMain makes this program a k1s where K1S_FAKE says which of its commands fail: it writes what it is asked for, and the results of tests
// where it is asked to run them.
func TestMain(m *testing.M) {
	how, ok := os.LookupEnv("K1S_FAKE")
	if !ok {
		os.Exit(m.Run())
	}
	if err := fake(how, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}

func fake(how string, args []string) error {
	here := filepath.Dir(os.Getenv("K1S_CLUSTERS_DIR"))
	f, err := os.OpenFile(os.Getenv("K1S_FAKE_ASKED"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	asked := args[:2]
	if i := slices.Index(args, "--set"); i > 0 {
		asked = append(slices.Clone(asked), args[i+1])
	}
	if _, err := fmt.Fprintln(f, strings.Join(asked, " ")); err != nil {
		return err
	}
	results := filepath.Join(here, "results") // as create was told
	switch args[1] {
	case "create":
		for _, a := range args {
			if host, ok := strings.CutSuffix(a, ":"+resultsInNode+"@server-0"); ok {
				err = os.WriteFile(results, []byte(host), 0o600)
			}
		}
	case "exec":
		host, err := os.ReadFile(results)
		if err != nil {
			return err
		}
		if report := os.Getenv("K1S_FAKE_REPORT"); report != "" {
			dir := filepath.Join(string(host), "ginkgo")
			if err := os.MkdirAll(dir, 0o755); err != nil {
				return err
			}
			if err := os.WriteFile(filepath.Join(dir, "report.json"), []byte(report), 0o600); err != nil {
				return err
			}
		}
	}
	if strings.Contains(how, args[1]) {
		return errors.Join(err, errors.New(args[1]+" fails"))
	}
	return err
}

func TestTheClusterIsDeletedWhateverCameOfTheTests(t *testing.T) {
	const good = `[{"SpecReports":[{"LeafNodeType":"It","LeafNodeText":"a","State":"passed"}]}]`
	const bad = `[{"SpecReports":[{"LeafNodeType":"It","LeafNodeText":"a","State":"failed"}]}]`
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, fails, report string
		asked               []string
		says                string // "" where it is a success
	}{
		{"passed", "", good, []string{"create", "spec.log.level=debug", "exec", "delete"}, ""},
		{"failed", "exec", bad, []string{"create", "spec.log.level=debug", "exec", "logs", "delete"}, "1 tests failed"},
		{"all passed, and ginkgo says otherwise", "exec", good, []string{"create", "spec.log.level=debug", "exec", "delete"}, "exit status 1"},
		{"no report", "exec", "", []string{"create", "spec.log.level=debug", "exec", "delete"}, "without a report"},
		{"no cluster", "create", "", []string{"create", "spec.log.level=debug", "delete"}, "exit status 1"},
		{"a cluster that stays", "delete", good, []string{"create", "spec.log.level=debug", "exec", "delete"}, "deleting the cluster"},
	} {
		t.Run(c.name, func(t *testing.T) {
			work := t.TempDir()
			asked := filepath.Join(t.TempDir(), "asked")
			t.Setenv("K1S_FAKE", c.fails)
			t.Setenv("K1S_FAKE_ASKED", asked)
			t.Setenv("K1S_FAKE_REPORT", c.report)
			o, err := parse([]string{"-program", program, "-out", t.TempDir(), "-work", work, "-focus", "a", "-set", "spec.log.level=debug"})
			if err != nil {
				t.Fatal(err)
			}
			err = test(t.Context(), o, "programs", "images.tar", plan{run: []string{"a"}})
			if c.says == "" && err != nil || c.says != "" && (err == nil || !strings.Contains(err.Error(), c.says)) {
				t.Errorf("error is %v", err)
			}
			b, err := os.ReadFile(asked)
			if err != nil {
				t.Fatal(err)
			}
			got := strings.Fields(strings.ReplaceAll(string(b), "cluster ", ""))
			if !slices.Equal(got, c.asked) {
				t.Errorf("asked for %q", got)
			}
			left, err := os.ReadDir(work)
			if err != nil {
				t.Fatal(err)
			}
			// What is in it may be needed still where the cluster is.
			if want := strings.Count(c.fails, "delete"); len(left) != want {
				t.Errorf("left: %q", left)
			}
		})
	}
}
