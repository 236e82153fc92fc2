#!/bin/bash
# Creates the cluster "demo", deploys examples/ and shows it answering.
# usage: build/up.sh K1S
set -euo pipefail
k1s=$1
cd "$(dirname "$0")/.."
"$k1s" cluster create demo
"$k1s" cluster kubectl demo -- apply -f examples/
"$k1s" cluster kubectl demo -- wait --for=condition=Available deployments --all --timeout=120s
"$k1s" cluster kubectl demo -- get pods,services -A
echo "delete it with: make down"
