// Command k1s-cni is the CNI plugins in one program: the name it is called by says which one it is. The
// plugins are upstream's, unchanged; as they are main packages, "make build" first makes importable
// copies of them (k1s-pack upstream), which the build tag k1s_upstream then compiles in.
package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// plugin is one CNI plugin; main reads standard input and the environment, and ends the process on errors.
type plugin struct {
	name string
	main func()
}

func main() {
	name := filepath.Base(os.Args[0])
	all := plugins()
	if i := slices.IndexFunc(all, func(p plugin) bool { return p.name == name }); i >= 0 {
		all[i].main()
		return
	}
	names := make([]string, 0, len(all))
	for _, p := range all {
		names = append(names, p.name)
	}
	fmt.Fprintf(os.Stderr, "%s: call this program by the name of a CNI plugin: %s\n", name, strings.Join(names, ", "))
	os.Exit(2)
}
