#!/bin/bash
# Creates the cluster "demo", deploys examples/ and shows it answering. May be repeated.
# usage: build/up.sh K1S
set -euo pipefail
k1s=$(realpath "$1")
cd "$(dirname "$0")/.."
port=${PORT:-8080}

# There is no registry here: the images of the example are built into archives the node imports.
go run ./test/images -o out/images

if "$k1s" cluster ls -o json | grep -q '"name": "demo"'; then
	"$k1s" cluster start demo
else
	"$k1s" cluster create demo --publish "$port:30080" --image-bundle out/images/app.tar --image-bundle out/images/busybox.tar
fi
kubectl() { "$k1s" cluster kubectl demo -- "$@"; }
kubectl apply -f examples/
kubectl rollout status deployment/web statefulset/store --timeout=120s
kubectl wait --for=condition=Complete job/greet --timeout=120s
kubectl get pods,services,persistentvolumeclaims
echo
echo "what the job says:"
kubectl logs job/greet | sed 's/^/  /'
echo
echo "http://127.0.0.1:$port answers (three times, from whichever copy):"
for _ in 1 2 3; do
	exec 3<>"/dev/tcp/127.0.0.1/$port"
	printf 'GET / HTTP/1.0\r\nHost: demo\r\n\r\n' >&3
	tail -n 1 <&3 | sed 's/^/  /'
	exec 3<&-
done
echo
echo "look around:  $1 cluster kubectl demo -- get pods -A     delete it:  make down"
