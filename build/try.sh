#!/bin/bash
# Does what the README begins with, `make up`, `k1s kubectl` and `make down`, beside whatever is here: with a cluster, a port, a
# directory and a home of its own. Fails if anything is left.
# usage: build/try.sh K1S      (which is built; as root)
set -euo pipefail
k1s=$(realpath "$1")
cd "$(dirname "$0")/.."

free() { ! (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }
port=18080
until free "$port"; do port=$((port + 1)); done
cluster=try

dir=$(mktemp -d /var/tmp/k1s-try-XXXXXX)
GOCACHE=$(go env GOCACHE) GOMODCACHE=$(go env GOMODCACHE) GOENV=$(go env GOENV)
export GOCACHE GOMODCACHE GOENV # which are below the true home
export HOME=$dir K1S_CLUSTERS_DIR=$dir/c K1S_DATA_DIR=$dir/node K1S_RUN_DIR=$dir/node K1S_CONFIG_DIR=$dir/node
unset KUBECONFIG
make() { command "${MAKE:-make}" --old-file=build K1S="$k1s" CLUSTER=$cluster PORT="$port" "$@"; } # with k1s as it is

down=
clear_up() {
	[ -n "$down" ] || "$k1s" cluster kubectl "$cluster" -- get pods,events -A >&2 || true # why it did not get as far as that
	if [ -n "$down" ] || "$k1s" cluster delete "$cluster" --yes; then
		rm -rf --one-file-system "$dir"
	else
		echo "error: a cluster was left; run: K1S_CLUSTERS_DIR=$dir/c $k1s cluster delete $cluster --yes" >&2
	fi
}
trap clear_up EXIT # not before the directories above are those that are meant
failed() {
	echo "error: $*" >&2
	exit 1
}
make up
echo
nodes=$("$k1s" kubectl get nodes) # through the context that make up has written into this home
echo "$nodes"
[[ $nodes == *" Ready "* ]] || failed "kubectl shows no node that is ready"
make down
down=yes
left=$("$k1s" cluster ls -o json)
[[ $left != *'"name"'* ]] || failed "make down left a cluster: $left"
! grep -qs try "$dir/.kube/config" || failed "make down left a context in the kubeconfig: $(cat "$dir/.kube/config")"
[ ! -e "$dir/node" ] || failed "kubectl made a node of this machine: $(ls -R "$dir/node")"
