#!/usr/bin/env bash
# A Docker engine for the tests of the docker-compose stack.
#
#   engine.sh start DIR   prints the DOCKER_HOST to use: of an engine that answers, or of its own, with its files in DIR
#   engine.sh stop DIR    stops its own engine, and nothing else
set -eu

dir=$(mkdir -p "$2" && cd "$2" && pwd)
# A socket's path may have 107 bytes, so sockets live where paths are short.
run=$(cat "$dir/run" 2>/dev/null || true)
own="unix://$run/docker.sock"

install() {
	missing=()
	command -v dockerd >/dev/null || missing+=(docker.io)
	command -v docker-compose >/dev/null || docker compose version >/dev/null 2>&1 || missing+=(docker-compose)
	command -v iptables >/dev/null || missing+=(iptables)
	[ ${#missing[@]} = 0 ] && return
	if [ "$(id -u)" != 0 ]; then
		echo "stack: no Docker engine answers, and only root can install one: apt-get install ${missing[*]}" >&2
		exit 1
	fi
	echo "stack: installing ${missing[*]}" >&2
	# Keeps Debian from starting an engine of the system: the tests run their own.
	printf '#!/bin/sh\nexit 101\n' >"$dir/policy-rc.d"
	chmod +x "$dir/policy-rc.d"
	[ -e /usr/sbin/policy-rc.d ] || { ln -s "$dir/policy-rc.d" /usr/sbin/policy-rc.d; trap 'rm -f /usr/sbin/policy-rc.d' EXIT; }
	apt-get update -qq >&2
	DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "${missing[@]}" >&2
}

start() {
	if [ ! -S "$run/docker.sock" ] && docker info >/dev/null 2>&1; then
		echo "${DOCKER_HOST:-unix:///var/run/docker.sock}"
		return
	fi
	if ! DOCKER_HOST=$own docker info >/dev/null 2>&1; then
		install
		run=$(mktemp -d /tmp/lockstep-engine.XXXXXX)
		echo "$run" >"$dir/run"
		own="unix://$run/docker.sock"
		setsid dockerd --data-root "$dir/data" --exec-root "$run/exec" -H "$own" -p "$run/docker.pid" >"$dir/dockerd.log" 2>&1 </dev/null &
		for _ in $(seq 60); do
			DOCKER_HOST=$own docker info >/dev/null 2>&1 && break
			sleep 1
		done
		if ! DOCKER_HOST=$own docker info >/dev/null 2>&1; then
			echo "stack: dockerd did not start; the end of $dir/dockerd.log:" >&2
			tail -20 "$dir/dockerd.log" >&2
			exit 1
		fi
	fi
	echo "$own"
}

stop() {
	[ -n "$run" ] && [ -f "$run/docker.pid" ] || return 0
	pid=$(cat "$run/docker.pid")
	kill "$pid" 2>/dev/null || true
	for _ in $(seq 30); do
		if ! kill -0 "$pid" 2>/dev/null; then
			rm -rf "$run" "$dir/run"
			return 0
		fi
		sleep 1
	done
	echo "stack: dockerd ($pid) does not stop" >&2
	return 1
}

"$1"
