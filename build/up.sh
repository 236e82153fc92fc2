#!/bin/bash
# Creates a cluster, deploys examples/ and shows it answering. May be repeated.
# usage: [CLUSTER=demo] [PORT=8080] build/up.sh K1S
# UP_WAIT is for how many seconds the port is asked until it answers.
set -euo pipefail
k1s=$(realpath "$1")
cd "$(dirname "$0")/.."
cluster=${CLUSTER:-demo}
port=${PORT:-8080}

# There is no registry here: the images of the example are built into archives the node imports.
go run ./test/images -o out/images

there=$("$k1s" cluster ls -o json)
if [[ $there == *"\"name\": \"$cluster\""* ]]; then
	"$k1s" cluster start "$cluster"
else
	"$k1s" cluster create "$cluster" --publish "$port:30080" --image-bundle out/images/app.tar --image-bundle out/images/busybox.tar
fi
kubectl() { "$k1s" cluster kubectl "$cluster" -- "$@"; }
kubectl apply -f examples/
kubectl rollout status deployment/web statefulset/store --timeout=120s
kubectl wait --for=condition=Complete job/greet --timeout=120s
kubectl get pods,services,persistentvolumeclaims
echo
echo "what the job says:"
kubectl logs job/greet | sed 's/^/  /'
echo

# answer is the whole answer of the published port, or why there is none.
answer() {
	timeout 10 bash -c 'exec 3<>"/dev/tcp/127.0.0.1/$0" && printf "GET / HTTP/1.0\r\nHost: %s\r\n\r\n" "$1" >&3 && cat <&3' "$port" "$cluster" 2>&1
}

echo "http://127.0.0.1:$port answers (three times, from whichever copy):"
give_up=$((SECONDS + ${UP_WAIT:-30})) # the node learns where the copies are a moment after they are ready; from then on it knows
for _ in 1 2 3; do
	until said=$(answer) && [[ $said == HTTP/1.?" 200 "* ]]; do
		if [ "$SECONDS" -ge "$give_up" ]; then
			echo "error: http://127.0.0.1:$port should answer with status 200, and says: $(head -n 1 <<<"$said" | tr -d '\r')" >&2
			echo "hint:  see: $1 cluster kubectl $cluster -- get pods,endpointslices; was $cluster made with another PORT? then: make down" >&2
			exit 1
		fi
		sleep 0.5
	done
	give_up=0
	tail -n 1 <<<"$said" | sed 's/^/  /'
done
echo
echo "look around:  $1 cluster kubectl $cluster -- get pods -A     delete it:  make down"
