#!/bin/bash
# Makes sure that what the build, or with "tests" what the system tests, or with "emulator" what running programs of
# another architecture needs from the system is there: installs it where that is possible, otherwise names
# everything that is missing in one error.
# usage: build/deps.sh ARCH [tests|emulator]      (amd64, arm64 or arm: what is built for)
# Files are looked for below DEPS_ROOT, which is empty but in the test of this script, see test/build.
set -euo pipefail
arch=$1
host=$(go env GOHOSTARCH)
who="the build"
root=${DEPS_ROOT:-}

missing=()
command_from() { command -v "$1" >/dev/null || missing+=("$2"); }
file_from() { compgen -G "$root$1" >/dev/null || missing+=("$2"); }

if [ "${2:-}" = tests ]; then
	who="the test of datastores"
	compgen -G "$root/usr/lib/postgresql/*/bin/postgres" >/dev/null || command_from postgres postgresql
	command_from mariadbd mariadb-server-core
	command_from nats-server nats-server
fi
if [ "${2:-}" = emulator ]; then
	who="running programs for $arch"
	case $arch in
	arm64) command_from qemu-aarch64 qemu-user ;;
	arm) command_from qemu-arm qemu-user ;;
	amd64) command_from qemu-x86_64 qemu-user ;;
	esac
fi
command_from zstd zstd
command_from readelf binutils
command_from pkg-config pkg-config
if [ "$arch" = "$host" ]; then
	command_from gcc gcc
	file_from "/usr/lib/*-linux-gnu*/libc.a" libc6-dev
	file_from "/usr/lib/*-linux-gnu*/libseccomp.a" libseccomp-dev
	file_from /usr/sbin/nft nftables
	# Not built in: the images of tests and examples are made from the one, tests lay links with the other.
	file_from /bin/busybox busybox-static
	command_from ip iproute2
else
	command_from dpkg-deb dpkg
	case $arch in
	arm64)
		command_from aarch64-linux-gnu-gcc gcc-aarch64-linux-gnu
		file_from /usr/aarch64-linux-gnu/lib/libc.a libc6-dev-arm64-cross
		;;
	arm)
		command_from arm-linux-gnueabihf-gcc gcc-arm-linux-gnueabihf
		command_from arm-linux-gnueabihf-ld.gold binutils-arm-linux-gnueabihf
		file_from /usr/arm-linux-gnueabihf/lib/libc.a libc6-dev-armhf-cross
		;;
	amd64)
		command_from x86_64-linux-gnu-gcc gcc-x86-64-linux-gnu
		file_from /usr/x86_64-linux-gnu/lib/libc.a libc6-dev-amd64-cross
		;;
	*) echo "error: cannot build for $arch: ARCH is one of amd64, arm64, arm" >&2; exit 1 ;;
	esac
fi
[ ${#missing[@]} -gt 0 ] || exit 0

if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
	echo "installing what $who needs: ${missing[*]}" >&2
	policy=$root/usr/sbin/policy-rc.d
	if [ "${2:-}" = tests ] && [ ! -e "$policy" ]; then # the tests start servers of their own, nothing else has to run
		trap 'rm -f "$policy"' EXIT
		printf '#!/bin/sh\nexit 101\n' >"$policy"
		chmod 755 "$policy"
	fi
	export DEBIAN_FRONTEND=noninteractive
	if { apt-get install -qq -y --no-install-recommends "${missing[@]}" ||
		{ apt-get update -qq && apt-get install -qq -y --no-install-recommends "${missing[@]}"; }; } >&2; then
		exit 0
	fi
fi
echo "error: $who needs packages that are not installed: ${missing[*]}" >&2
echo "hint:  as root, run: apt-get install ${missing[*]}" >&2
exit 1
