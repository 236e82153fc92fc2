//go:build k1s_upstream

package localpath

import (
	"os"

	"k1s.io/k1s/out/_upstream/localpath"
)

// Run is upstream's provisioner. It takes upstream's flags and owns the process: it reads os.Args,
// handles the signals and exits by itself.
func Run(args []string) error {
	os.Args = append([]string{"local-path-provisioner"}, args...)
	localpath.Main()
	return nil
}
