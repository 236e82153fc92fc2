#!/bin/bash
# Copies nft, every library it needs and the dynamic loader from a Debian root into a directory.
# usage: build/nft.sh ROOT OUT        (ROOT is / or a directory into which packages were extracted)
# Prints the Debian package files' paths it took, one a line, for the licence list.
set -euo pipefail
export LC_ALL=C
root=${1%/} out=$2

find_lib() { # NAME: the first file of that name in the library directories of the root
	local d
	for d in "$root"/lib/*-linux-gnu* "$root"/usr/lib/*-linux-gnu* "$root"/lib64 "$root"/lib "$root"/usr/lib; do
		if [ -e "$d/$1" ]; then readlink -f "$d/$1"; return; fi
	done
	echo "nft.sh: library $1 not found under $root/" >&2
	return 1
}

declare -A have
queue=()
take() { # FILE NAME: copies and queues what the file needs
	cp --no-preserve=all "$1" "$out/$2"
	echo "$1"
	local need
	while read -r need; do
		[ -n "${have[$need]:-}" ] || { have[$need]=1; queue+=("$need"); }
	done < <(readelf -d "$1" | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p')
}

rm -rf "$out"
mkdir -p "$out"
nft=$root/usr/sbin/nft
take "$nft" nft
loader=$(readelf -l "$nft" | sed -n 's/.*interpreter: .*\/\(.*\)\]/\1/p')
while [ ${#queue[@]} -gt 0 ]; do
	next=${queue[0]}
	queue=("${queue[@]:1}")
	if [ "$next" = "$loader" ]; then continue; fi
	take "$(find_lib "$next")" "$next"
done
take "$(find_lib "$loader")" ld.so
chmod 755 "$out/nft" "$out/ld.so"
