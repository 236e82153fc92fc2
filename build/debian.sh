#!/bin/bash
# Lists the Debian packages that files of the payload come from: name, version and copyright file, one
# package a line, for the licence list.
# usage: build/debian.sh native FILE…      the packages that own these files, and the static libraries
#        build/debian.sh SYSROOT           what build/sysroot.sh fetched
set -euo pipefail
export LC_ALL=C
if [ "$1" != native ]; then
	for deb in "$1"/deb/*.deb; do
		name=$(dpkg-deb -f "$deb" Package)
		echo "$name $(dpkg-deb -f "$deb" Version) $1/root/usr/share/doc/$name/copyright"
	done | sort
	exit
fi
shift
owner() { # FILE: since /lib became a link to /usr/lib, packages may know a file by either name
	dpkg-query -S "$1" 2>/dev/null || dpkg-query -S "${1#/usr}" 2>/dev/null ||
		{ echo "debian.sh: no package owns $1" >&2; return 1; }
}
{
	for file; do
		found=$(owner "$file")
		found=${found%%,*}
		echo "${found%%:*}"
	done
	echo libc6-dev
	echo libseccomp-dev
} | sort -u | while read -r name; do
	echo "$name $(dpkg-query -W -f '${Version}\n' "$name" | head -n 1) /usr/share/doc/$name/copyright"
done
