// Package kubectl is upstream's kubectl as an applet, including its search for plugins in PATH.
package kubectl

import (
	"context"
	"os"

	_ "k8s.io/client-go/plugin/pkg/client/auth" // credential plugins a kubeconfig may name
	"k8s.io/component-base/cli"
	"k8s.io/component-base/logs"
	"k8s.io/kubectl/pkg/cmd"
	"k8s.io/kubectl/pkg/cmd/util"

	_ "k1s.io/k1s/internal/applets/kubectl/translations" // keeps what is not kubectl from loading them
)

// Run takes kubectl's arguments and finds the cluster as kubectl does. It is a tool: like upstream's
// program it prints its own errors and ends the process with kubectl's exit code when it fails.
func Run(ctx context.Context, args []string) error {
	// Aliases, plugins and the user agent are all read from the process's arguments.
	os.Args = append([]string{"kubectl"}, args...)
	_, _ = logs.GlogSetter(cmd.GetLogVerbosity(os.Args)) // a bad value is reported when flags are parsed
	command := cmd.NewDefaultKubectlCommand()
	command.SetContext(ctx)
	if err := cli.RunNoErrOutput(command); err != nil {
		util.CheckErr(err)
	}
	return nil
}
