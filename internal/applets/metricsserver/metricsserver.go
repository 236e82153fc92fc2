// Package metricsserver is upstream's metrics-server as an applet of cmd/k1s-pods.
package metricsserver

import (
	genericapiserver "k8s.io/apiserver/pkg/server"
	"k8s.io/component-base/logs"
	"sigs.k8s.io/metrics-server/cmd/metrics-server/app"
)

// Run takes upstream's flags and owns the process: SIGTERM and SIGINT end it.
func Run(args []string) error {
	logs.InitLogs()
	defer logs.FlushLogs()
	cmd := app.NewMetricsServerCommand(genericapiserver.SetupSignalHandler())
	cmd.SetArgs(args)
	cmd.SilenceUsage = true
	cmd.SilenceErrors = true // main prints the error
	return cmd.Execute()
}
