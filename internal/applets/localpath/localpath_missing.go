//go:build !k1s_upstream

package localpath

import "errors"

// Run says that the copy of the upstream package was not made first, as "make build" does.
func Run([]string) error {
	return errors.New("built without the local-path provisioner: build with make")
}
