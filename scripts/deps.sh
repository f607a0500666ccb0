#!/usr/bin/env bash
# Installs what tests and demo need besides Go, git and make, if it is missing: Postgres' server programs with their
# extensions, and a C compiler for the race detector. This needs root and apt-get. Without them the script says what to
# install.
set -eu

missing=()

have_postgres() {
	local dir
	for dir in "$(dirname "$(readlink -f "$(command -v postgres || echo /nowhere/x)")")" /usr/lib/postgresql/*/bin; do
		[ -x "$dir/postgres" ] && [ -x "$dir/initdb" ] && [ -x "$dir/pg_basebackup" ] && return 0
	done
	return 1
}

have_contrib() {
	local dirs=(/usr/share/postgresql/*/extension) dir
	command -v pg_config >/dev/null && dirs+=("$(pg_config --sharedir)/extension")
	for dir in "${dirs[@]}"; do
		[ -e "$dir/hstore.control" ] && return 0
	done
	return 1
}

have_postgres || missing+=(postgresql)
have_contrib || missing+=(postgresql-contrib)
command -v "${CC:-gcc}" >/dev/null || missing+=(gcc libc6-dev)

[ ${#missing[@]} -eq 0 ] && exit 0

if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
	echo "Missing: ${missing[*]}. Install these packages. On Debian:" >&2
	echo "    sudo apt-get update && sudo apt-get install --no-install-recommends ${missing[*]}" >&2
	exit 1
fi
echo "Installing ${missing[*]} with apt-get."
case " ${missing[*]} " in
*" postgresql "*) echo "(When Debian installs Postgres, it makes a database cluster. This project does not use it.)" ;;
esac
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -y -qq --no-install-recommends "${missing[@]}"
