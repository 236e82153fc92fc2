package flannel

import (
	"context"

	"sigs.k8s.io/knftables"
)

// guardTable keeps pods away from what listens on the node's loopback. The portmap plugin lets packets for
// 127.0.0.0/8 be routed on the links of pods with a host port, so that the port answers on 127.0.0.1 too;
// without this a pod could reach the node's local services through it (CVE-2020-8558).
const guardTable = "k1s-localnet"

func guardLoopback(ctx context.Context) error {
	nft, err := knftables.New(knftables.IPv4Family, guardTable)
	if err != nil {
		return wrap(err, "guarding the node's loopback")
	}
	tx := nft.NewTransaction()
	tx.Add(&knftables.Table{Comment: knftables.PtrTo("k1s: pods do not reach the node's 127.0.0.1")})
	tx.Add(&knftables.Chain{
		Name: "input", Type: knftables.PtrTo(knftables.FilterType), Hook: knftables.PtrTo(knftables.InputHook),
		Priority: knftables.PtrTo(knftables.FilterPriority),
	})
	tx.Flush(&knftables.Chain{Name: "input"})
	tx.Add(&knftables.Rule{
		Chain: "input",
		Rule:  knftables.Concat("iifname != lo ip daddr 127.0.0.0/8 ct state != { established, related } drop"),
	})
	return wrap(nft.Run(ctx, tx), "guarding the node's loopback")
}
