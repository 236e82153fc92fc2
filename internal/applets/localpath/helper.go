// Package localpath is upstream's local-path provisioner, and the helper that its pods run to make and
// remove volume directories. Upstream's helper pods run shell scripts from a ConfigMap; ours need
// no shell and so no image. Only cmd/k1s-pods uses it.
package localpath

import (
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
)

// Helper does what upstream's setup and teardown scripts do. The provisioner runs its setupCommand and
// teardownCommand, a path without arguments, followed by
//
//	-p VOLUME_DIR -s SIZE_IN_BYTES -m Filesystem|Block -a create|delete
//
// Both actions may be repeated. The directory is open to all (mode 0777 whatever the umask), because
// the user that the workload runs as is not known here; the size is not enforced, as upstream's is not.
func Helper(args []string) error {
	fs := flag.NewFlagSet("local-path-helper", flag.ContinueOnError)
	fs.SetOutput(io.Discard) // the error says it
	dir := fs.String("p", "", "volume directory")
	fs.Int64("s", 0, "size in bytes")
	mode := fs.String("m", "Filesystem", "volume mode")
	action := fs.String("a", "", "create or delete")
	if err := fs.Parse(args); err != nil {
		return fmt.Errorf("reading the provisioner's arguments %q: %w", args, err)
	}
	if fs.NArg() > 0 {
		return fmt.Errorf("reading the provisioner's arguments: unexpected %q", fs.Args())
	}
	// A wrong path here would be removed with everything in it.
	if !filepath.IsAbs(*dir) || filepath.Clean(*dir) != *dir || strings.Count(*dir, "/") < 2 {
		return fmt.Errorf("volume directory %q is not a clean absolute path below a storage directory", *dir)
	}
	switch *action {
	case "create":
		if *mode != "Filesystem" {
			return fmt.Errorf("creating volume %s: volume mode %s is not supported by local-path", *dir, *mode)
		}
		if err := os.MkdirAll(*dir, 0o777); err != nil {
			return fmt.Errorf("creating volume: %w", err)
		}
		// A link put in place of the directory must not have its target opened to everybody.
		st, err := os.Lstat(*dir)
		if err != nil {
			return fmt.Errorf("creating volume: %w", err)
		}
		if !st.IsDir() {
			return fmt.Errorf("creating volume: %s is not a directory", *dir)
		}
		if err := os.Chmod(*dir, 0o777); err != nil {
			return fmt.Errorf("creating volume: %w", err)
		}
	case "delete":
		if err := os.RemoveAll(*dir); err != nil {
			return fmt.Errorf("removing volume: %w", err)
		}
	default:
		return fmt.Errorf("action %q is neither create nor delete", *action)
	}
	return nil
}
