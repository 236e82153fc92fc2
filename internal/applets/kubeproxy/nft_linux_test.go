package kubeproxy_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// kube-proxy reads what is in its maps, and deletes what it has not put there: a protocol that is read as a number is not what it has put there as
// "tcp". Names come from /etc/protocols, which many machines do not have.
func TestElementsAreReadAsTheyWereWrittenWhereNoProtocolHasAName(t *testing.T) {
	if os.Getenv("K1S_TEST_ROOT") == "" {
		t.Skip("K1S_TEST_ROOT is not set: it needs root, and the nft that k1s carries first in PATH, see make real")
	}
	nft, err := exec.LookPath("nft")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(nft+".d", "protocols.so")); err != nil {
		t.Fatalf("%s is not the one that k1s carries: %v", nft, err)
	}
	const script = `set -e
if [ -e /etc/protocols ]; then mount --bind /dev/null /etc/protocols; fi
nft add table ip t
nft add map ip t m '{ type ipv4_addr . inet_proto . inet_service : verdict; }'
nft add chain ip t c
nft add element ip t m '{ 10.0.0.1 . tcp . 443 : goto c, 10.0.0.1 . udp . 53 : goto c, 10.0.0.1 . sctp . 80 : goto c }'
nft --json list map ip t m
nft add rule ip t c meta l4proto '{' tcp, udp, sctp, icmp, ipv6-icmp '}' accept
nft list chain ip t c`
	cmd := exec.CommandContext(t.Context(), "unshare", "--mount", "--net", "sh", "-c", script)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, want := range []string{`["10.0.0.1", "tcp", 443]`, `["10.0.0.1", "udp", 53]`, `["10.0.0.1", "sctp", 80]`, "icmp", "ipv6-icmp"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("%s is not in\n%s", want, out)
		}
	}
}
