#!/bin/bash
# Builds this commit twice and compares: here, and in a clone in another directory, with a cache of its own that is empty. The
# second build shares nothing with the first but the commit and the modules; it takes as long and as much disk as a first build.
# usage: build/reproducible.sh ARCH LEVEL
set -euo pipefail
arch=$1 level=$2
cd "$(dirname "$0")/.."
make=${MAKE:-make}
twice=$PWD/out/reproducible

if [ -n "$(git status --porcelain)" ]; then
	echo "error: there are changes that are not committed, which a clone does not have" >&2
	echo "hint:  see: git status" >&2
	exit 1
fi
commit=$(git rev-parse HEAD)
rm -rf "$twice"
mkdir -p "$twice"
echo "here:"
"$make" build ARCH="$arch" LEVEL="$level" COMMIT="$commit" OUT=out/reproducible/here K1S=out/reproducible/k1s-here
echo "from nothing, in a clone:"
git clone --quiet . "$twice/elsewhere"
GOCACHE=$twice/cache "$make" -C "$twice/elsewhere" build ARCH="$arch" LEVEL="$level" COMMIT="$commit" OUT="out/$arch" K1S="$twice/k1s-elsewhere"
cmp "$twice/k1s-here" "$twice/k1s-elsewhere" # and leave both, to be looked at, if they differ
sha256sum "$twice/k1s-here" "$twice/k1s-elsewhere"
rm -rf "$twice"
