#!/bin/sh
# Have apt read Debian's archive as it was at a moment (YYYYMMDDTHHMMSSZ), so that the same packages
# are installed whenever that is done. Empty: the archive as it is.
set -eu

moment=$1
[ -n "$moment" ] || exit 0
# shellcheck source=/dev/null
release=$(. /etc/os-release && echo "$VERSION_CODENAME")
archive=http://snapshot.debian.org/archive
rm -f /etc/apt/sources.list.d/debian.sources
# An old list of packages has expired; it is still signed.
cat >/etc/apt/sources.list <<LIST
deb [check-valid-until=no] $archive/debian/$moment $release main
deb [check-valid-until=no] $archive/debian/$moment $release-updates main
deb [check-valid-until=no] $archive/debian-security/$moment $release-security main
LIST
