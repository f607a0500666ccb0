#!/usr/bin/env bash
# Runs the tests that depend most on Postgres against the given major versions (16 17 18), one after another. At the end
# it prints which packages passed. A version that can't be installed fails, and so does a package whose tests reached no
# server.
set -eu
cd "$(dirname "$0")/.."

packages=(./internal/poller/... ./internal/relation/... ./internal/wal/... ./internal/doctor/... ./internal/simtest/... ./internal/e2e/...)
[ $# -gt 0 ] || set -- 16 17 18

unset LOCKSTEP_TEST_DATABASE_URL
mkdir -p .cache
matrix=$(mktemp)
trap 'rm -f "$matrix"' EXIT
failed=0

# rows turns the output of go test -v into rows of the matrix. The server itself told testenv its version.
rows() {
	awk -F '\t' -v asked="$1" '
		function row(package, seconds, result) {
			printf "%-10s %-26s %5d %7d %8s  %s\n", server ? server : asked " ?", package, ran, skipped, seconds, result
			ran = skipped = 0
			server = ""
			n++
		}
		/^--- (PASS|FAIL)/ { ran++ }
		/^--- SKIP/ { skipped++ }
		sub(/.*testenv: the server is Postgres /, "") { server = $1 }
		/^(ok  |FAIL)\t/ { sub(/ .*/, "", $2); sub(/ .*/, "", $3); row($2, $3 ? $3 : "-", $1 ~ /^ok/ && ran && server ? "pass" : "FAIL") }
		END { if (!n) row("none", "-", "FAIL") }'
}

# against tests one version. The output of passing tests stays in the log.
against() {
	local bin log=.cache/test-pg-$1.log
	: >"$log"
	if bin=$(scripts/postgres.sh "$1"); then
		echo "Postgres $1: the log is in $log"
		LOCKSTEP_TEST_POSTGRES_BIN=$bin LOCKSTEP_TEST_POSTGRES_VERSION=$1 \
			go test -count=1 -timeout 20m -v "${packages[@]}" >"$log" 2>&1 || {
			failed=1
			grep -vE '^ *(=== |--- PASS)|^testenv: ' "$log" || true
		}
	fi
	rows "$1" <"$log" >>"$matrix"
}

for major; do
	against "$major"
done
printf '%-10s %-26s %5s %7s %8s  %s\n' server package tests skipped time result
cat "$matrix"
[ $failed = 0 ] && ! grep -q 'FAIL$' "$matrix"
