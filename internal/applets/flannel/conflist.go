package flannel

import (
	"bytes"
	"encoding/json"
	"errors"
	"net/netip"
	"os"
	"path/filepath"

	"k1s.io/k1s/internal/applets/networkpolicy/gate"
)

// conflistName is the file in the CNI configuration directory.
const conflistName = "10-k1s.conflist"

// conflist renders the CNI configuration of a node. Every pod gets a veth of its own that is routed
// (ptp), not a port of a bridge: bridged traffic passes netfilter only with the module br_netfilter,
// which is not everywhere, and without it a service whose pod is on the same node does not answer.
//
// With a policySocket, the last plugin waits until the pod's network policies are in force.
func conflist(podCIDR netip.Prefix, mtu int, stateDir, policySocket string) []byte {
	type m map[string]any
	plugins := []any{
		struct {
			Type   string `json:"type"`
			MTU    int    `json:"mtu"`
			IPMasq bool   `json:"ipMasq"` // once for the node, by flannel's rules, not once for each pod
			IPAM   any    `json:"ipam"`
		}{"ptp", mtu, false, m{
			"type":    "host-local",
			"dataDir": stateDir,
			"ranges":  [][]m{{{"subnet": podCIDR.String()}}},
			"routes":  []m{{"dst": "0.0.0.0/0"}},
		}},
		m{"type": "portmap", "backend": "nftables", "snat": true, "capabilities": m{"portMappings": true}},
		m{"type": "bandwidth", "capabilities": m{"bandwidth": true}},
	}
	if policySocket != "" {
		plugins = append(plugins, m{"type": gate.Plugin, "socket": policySocket})
	}
	v := struct {
		Version string `json:"cniVersion"`
		Name    string `json:"name"`
		Plugins []any  `json:"plugins"`
	}{"1.0.0", "k1s", plugins}
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil { // only strings and numbers in it
		panic(err)
	}
	return append(b, '\n')
}

// writeConflist replaces the file at once, and only when it differs: the container runtime reads it
// whenever it changes. A file of that name with half its content would make the node not ready.
func writeConflist(dir string, content []byte) (changed bool, err error) {
	name := filepath.Join(dir, conflistName)
	if old, err := os.ReadFile(name); err == nil && bytes.Equal(old, content) {
		return false, os.Chmod(name, 0o600) // an older k1s has let others read it
	}
	// The runtime reads files by their ending, so it does not see this one.
	f, err := os.CreateTemp(dir, conflistName+".*.tmp")
	if err != nil {
		return false, err
	}
	_, err = f.Write(content)
	err = errors.Join(err, f.Chmod(0o600), f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), name)
	}
	if err != nil {
		return false, errors.Join(err, os.Remove(f.Name()))
	}
	return true, nil
}

// removeConflist makes pods wait for a network; it tells whether there was one. What others have put into the directory stays.
func removeConflist(dir string) (bool, error) {
	err := os.Remove(filepath.Join(dir, conflistName))
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}
