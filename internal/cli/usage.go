package cli

import (
	"fmt"
	"slices"

	"github.com/spf13/cobra"

	"k1s.io/k1s/internal/addons"
	"k1s.io/k1s/internal/components"
	"k1s.io/k1s/internal/config"
)

// disableNames are the packaged components a user may leave out.
func disableNames() []string {
	names := components.Optional()
	for _, a := range addons.Packaged() {
		if a.Optional {
			names = append(names, a.Name)
		}
	}
	slices.Sort(names)
	return names
}

// groupedUsage prints the settings' flags by section of the configuration file.
func groupedUsage(_ func(*cobra.Command) error) func(*cobra.Command) error {
	return func(cmd *cobra.Command) error {
		w := cmd.OutOrStderr()
		fmt.Fprintf(w, "Usage:\n  %s\n", cmd.UseLine())
		if cmd.HasExample() {
			fmt.Fprintf(w, "\nExamples:\n%s\n", cmd.Example)
		}
		for _, g := range config.FlagGroups(cmd.LocalFlags()) {
			fmt.Fprintf(w, "\n%s:\n%s", g.Title, g.Flags.FlagUsagesWrapped(110))
		}
		return nil
	}
}
