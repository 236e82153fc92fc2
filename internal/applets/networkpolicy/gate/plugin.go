package gate

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"
)

// conf is the plugin's part of the CNI configuration.
type conf struct {
	types.PluginConf
	Socket string `json:"socket"`
}

// podArgs are what container runtimes say about pods in CNI_ARGS.
type podArgs struct {
	types.CommonArgs
	K8S_POD_NAMESPACE, K8S_POD_NAME, K8S_POD_UID types.UnmarshallableString //nolint:revive // the names are given
}

// Main is the CNI plugin: it reads standard input and the environment as the specification says, and ends the process on
// errors. A pod whose policies are not in force after Patience does not start; the kubelet tries again.
func Main() {
	skel.PluginMainFuncs(skel.CNIFuncs{
		Add: add, Del: del,
		Check:  func(*skel.CmdArgs) error { return nil },
		Status: func(*skel.CmdArgs) error { return nil },
	}, version.All, "CNI plugin "+Plugin)
}

func add(args *skel.CmdArgs) error {
	c, r, err := request(args)
	if err != nil {
		return err
	}
	if c.PrevResult == nil {
		return errors.New(Plugin + " is not the first plugin of a list: it has nothing to do without addresses")
	}
	result, err := types100.NewResultFromResult(c.PrevResult)
	if err != nil {
		return fmt.Errorf("reading the result of the plugins before: %w", err)
	}
	for _, ip := range result.IPs {
		if a, ok := netip.AddrFromSlice(ip.Address.IP); ok {
			r.IPs = append(r.IPs, a.Unmap())
		}
	}
	if r.Name != "" { // else it is no pod
		ctx, cancel := context.WithTimeout(context.Background(), Patience)
		defer cancel()
		if err := Ask(ctx, c.Socket, r, true); err != nil {
			return err
		}
	}
	return types.PrintResult(c.PrevResult, c.CNIVersion)
}

// del never fails: the agent learns of a pod's end from the API server as well.
func del(args *skel.CmdArgs) error {
	c, r, err := request(args)
	if err != nil || r.Name == "" {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	r.Gone = true
	_ = Ask(ctx, c.Socket, r, false)
	return nil
}

func request(args *skel.CmdArgs) (conf, Request, error) {
	var c conf
	if err := json.Unmarshal(args.StdinData, &c); err != nil {
		return c, Request{}, fmt.Errorf("reading the CNI configuration: %w", err)
	}
	if err := version.ParsePrevResult(&c.PluginConf); err != nil {
		return c, Request{}, fmt.Errorf("reading the result of the plugins before: %w", err)
	}
	var pod podArgs
	pod.IgnoreUnknown = true
	if err := types.LoadArgs(args.Args, &pod); err != nil {
		return c, Request{}, fmt.Errorf("reading CNI_ARGS %q: %w", args.Args, err)
	}
	return c, Request{
		Namespace: string(pod.K8S_POD_NAMESPACE), Name: string(pod.K8S_POD_NAME), UID: string(pod.K8S_POD_UID), Container: args.ContainerID,
	}, nil
}
