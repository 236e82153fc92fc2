// Package script runs the command line as a user types it. Every file in testdata is a script in the txtar
// format that reads as documentation: what is typed, what is answered, which files there are. They need
// neither root nor a payload nor a running node; what those bring is tested in test/system.
package script

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"k1s.io/k1s/internal/cli"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"k1s": func() { os.Exit(cli.Run(context.Background(), cli.SystemDeps(), os.Args)) },
	})
}

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup:               ownDirectories,
		Cmds:                map[string]func(*testscript.TestScript, bool, []string){"exit": exit},
		Condition: func(name string) (bool, error) {
			if name == "root" {
				return os.Geteuid() == 0, nil
			}
			return false, errors.New("unknown condition " + name)
		},
	})
}

// ownDirectories keeps every script away from this machine's node, clusters and kubeconfig.
func ownDirectories(e *testscript.Env) error {
	for name, dir := range map[string]string{
		"HOME": "home", "K1S_DATA_DIR": "data", "K1S_RUN_DIR": "run", "K1S_CONFIG_DIR": "etc",
		"K1S_KUBELET_DIR": "kubelet", "K1S_CLUSTERS_DIR": "clusters",
	} {
		e.Setenv(name, filepath.Join(e.WorkDir, dir))
	}
	return nil
}

// exit is `exit CODE COMMAND…`: the command ends with exactly this code, or with one of several: `exit 0|4 …`.
func exit(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exit CODE[|CODE] COMMAND ARG...")
	}
	got := 0
	err := ts.Exec(args[1], args[2:]...)
	var ended *exec.ExitError
	if errors.As(err, &ended) {
		got = ended.ExitCode()
	} else {
		ts.Check(err)
	}
	if !slices.Contains(strings.Split(args[0], "|"), strconv.Itoa(got)) {
		ts.Fatalf("%s ended with exit code %d, want %s", strings.Join(args[1:], " "), got, args[0])
	}
}
