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

# without_security copies the machine's sources of packages, but for suites of security updates.
without_security() {
	mkdir "$out/sources.d"
	for f in /etc/apt/sources.list /etc/apt/sources.list.d/*.list; do
		[ ! -e "$f" ] || sed '/-security/d' "$f" >"$out/sources.d/$(basename "$f" .list).list"
	done
	for f in /etc/apt/sources.list.d/*.sources; do
		[ ! -e "$f" ] || sed -E '/^Suites:/s/[[:space:]]+[^[:space:]]+-security[^[:space:]]*//g' "$f" |
			awk 'BEGIN { RS = ""; ORS = "\n\n" } !/(^|\n)Suites:[[:space:]]*(\n|$)/' >"$out/sources.d/$(basename "$f")"
	done
	apt+=(-o Dir::Etc::SourceList=/dev/null -o "Dir::Etc::SourceParts=$out/sources.d")
}

# Mirrors of the security updates lag behind for architectures few use: their index and what it should be differ for
# days. The build does without them then; which versions it took stands in the list of components.
if ! apt-get "${apt[@]}" update; then
	without_security
	apt-get "${apt[@]}" update
	echo "warning: the packages for $arch are without Debian's security updates: their index cannot be fetched, see above" >&2
fi
(cd "$out/deb" && apt-get "${apt[@]}" download "${packages[@]/%/:$arch}")
for deb in "$out"/deb/*.deb; do
	dpkg-deb -x "$deb" "$out/root"
done
rm -rf "$out/lists" "$out/cache" "$out/sources.d"
touch "$out/.complete"
