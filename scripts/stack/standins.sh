#!/usr/bin/env bash
# Makes stand-ins for the images of the docker-compose stack, on machines that can't pull them. They have the same names
# and come from Debian's packages and the Go module proxy. They are for this project's tests alone; a machine that can
# pull gets the real images. There is no stand-in for Grafana; a test checks its dashboard as a file.
#
#   standins.sh DIR   DIR keeps what takes long to make
set -eu
here=$(cd "$(dirname "$0")" && pwd)
top=$(cd "$here/../.." && pwd)
dir=$(mkdir -p "$1" && cd "$1" && pwd)
base=lockstep-standin-base:bookworm
. "$top/scripts/tmpdir.sh"

# images lists the images that the compose file and the Dockerfile name, without our own.
images() {
	grep -hoE '^ +image: [^ ]+:[^ ]+|^FROM [^ ]+:[^ ]+' "$top/docker-compose.yml" "$top/Dockerfile" | awk '{print $2}' | sort -u
}

have() { docker image inspect "$1" >/dev/null 2>&1; }

make_base() {
	have $base && return
	command -v debootstrap >/dev/null || { echo "stack: installing debootstrap"; apt-get install -y -qq debootstrap >/dev/null; }
	if [ ! -f "$dir/base.tar" ]; then
		echo "stack: making a Debian root file system"
		root=$(mktemp -d -p "${TMPDIR:-$dir}" root.XXXXXX)
		debootstrap --variant=minbase --include=ca-certificates,wget bookworm "$root" >"$dir/debootstrap.log" 2>&1 ||
			{ tail -5 "$dir/debootstrap.log"; exit 1; }
		rm -rf "$root"/var/cache/apt/archives/*.deb
		# Packages are installed in images only, where nothing survives a crash anyway.
		echo force-unsafe-io >"$root/etc/dpkg/dpkg.cfg.d/unsafe-io"
		tar -C "$root" -cf "$dir/base.tar" .
		rm -rf "$root"
	fi
	docker import "$dir/base.tar" $base >/dev/null
}

# build makes one stand-in in its own folder, $context. The function prepare_NAME puts files there.
build() {
	local name=$1 image=$2 context=$dir/context-$1
	rm -rf "$context" && cp -r "$here/standins/$name" "$context"
	"prepare_$name"
	docker build -q -t "$image" "$context" >/dev/null
	rm -rf "$context"
}

prepare_postgres() { :; }
prepare_nginx() { :; }
prepare_prometheus() { :; }

prepare_nats() {
	(cd "$top" && CGO_ENABLED=0 go build -o "$context/nats-server" github.com/nats-io/nats-server/v2)
}

# Uses this machine's Go and its settings for modules.
prepare_golang() {
	mkdir "$context/go"
	tar -C "$(go env GOROOT)" -c --exclude=./test --exclude=./doc . | tar -C "$context/go" -x
	cp /etc/ssl/certs/ca-certificates.crt "$context/"
	for v in GOPROXY GONOSUMDB GOSUMDB GOPRIVATE; do
		echo "ENV $v=$(go env $v)" >>"$context/Dockerfile"
	done
}

builds=()
for image in $(images); do
	have "$image" && continue
	if timeout 20 docker pull -q "$image" >/dev/null 2>&1; then
		continue
	fi
	name=${image%%:*}
	name=${name##*/}
	if [ ! -d "$here/standins/$name" ]; then
		echo "stack: $image can't be pulled and has no stand-in: its service does not run"
		continue
	fi
	make_base
	echo "stack: $image can't be pulled; making a stand-in from Debian's packages"
	build "$name" "$image" &
	builds+=($!)
done
for pid in "${builds[@]}"; do
	wait "$pid"
done
