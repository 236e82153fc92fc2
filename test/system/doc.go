// Package system tests the finished k1s: real nodes, real workloads, real faults. Every node lives in
// namespaces without a way out (`k1s cluster create`, or a bare machine made by unshare), and is used the
// way a user does: the k1s program, kubectl, ports on 127.0.0.1. What is not tested here: packages by
// themselves (beside their code) and the command line without a node (test/script).
//
// The tests have the build tag system and run where K1S_TEST_ROOT is set, see `make system`:
//
//	main_test.go      the bench: where everything lives; the snapshot of the machine before and after
//	k1s.go            running the k1s program
//	cluster.go        one cluster: kubectl, exec, status, and what is shown when a test fails
//	faults.go         what has to outlive a fault, and how to make one
//	registers.go      clients whose history is checked: is there one order of all they did and saw?
//	successor.go      the next version of the k1s under test, to upgrade to, and one that says it is of another Kubernetes
//	watcher.go        what a watch has to tell of, and whether it did
//	bare.go           a machine with nothing on it, for servers that must not start
//	network.go        network namespaces in which a test has sockets and programs of its own
//	host.go           another machine for clusters to be made on, with a network of its own
//	outside.go        what that machine is connected to, and what is seen on the link
//	registry.go       a real container registry, from the module in test/registry
//	leftovers.go      what is on this machine, and what a run has added to it
//	databases.go      databases of others, run in a node's network
//	manifests/        the workloads, as a user would write them
//
// survive_test.go, restored_test.go and upgrade_cluster_test.go have the build tag faults, too, and a target of their own, see `make faults`: they take long.
//
// What takes minutes by itself runs only where it is asked for: several servers on one PostgreSQL with K1S_TEST_EXTERNAL
// (`make system-external`).
package system
