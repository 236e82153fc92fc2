#!/bin/bash
# Fetches the Debian packages that a build for another architecture takes files from, and extracts them
# into a directory. apt runs on a private state, so the machine's own package lists do not change.
# usage: build/sysroot.sh DEBIAN_ARCH OUT
set -euo pipefail
arch=$1 out=$(realpath -m "$2")
packages=(libseccomp-dev libseccomp2 nftables libnftables1 libedit2 libmnl0 libnftnl11 libxtables12 libjansson4 libgmp10
	libtinfo6 libbsd0 libmd0 libc6)

[ ! -e "$out/.complete" ] || exit 0
rm -rf "$out"
mkdir -p "$out"/{root,deb,lists/partial,cache/archives/partial}
: >"$out/status"
apt=(-qq -o "APT::Architecture=$arch" -o "APT::Architectures::=$arch" -o "Dir::State::Lists=$out/lists" -o "Dir::State::Status=$out/status"
	-o "Dir::Cache=$out/cache" -o APT::Sandbox::User=root)
apt-get "${apt[@]}" update
(cd "$out/deb" && apt-get "${apt[@]}" download "${packages[@]/%/:$arch}")
for deb in "$out"/deb/*.deb; do
	dpkg-deb -x "$deb" "$out/root"
done
rm -rf "$out/lists" "$out/cache"
touch "$out/.complete"
