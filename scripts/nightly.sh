#!/usr/bin/env bash
# What make nightly runs: all that takes too long for make test. It goes on after a failure, and says at the end what
# passed, what failed, and how long each took. The log of each part is in .cache/nightly.
set -uo pipefail
cd "$(dirname "$0")/.."

logs=.cache/nightly
mkdir -p "$logs"
table=() failed=0

# part NAME COMMAND... runs one part.
part() {
	local name=$1 begun=$SECONDS result=passed
	shift
	echo "=== $name ($(date -u +%H:%M:%S)): $*; log: $logs/$name.log"
	"$@" >"$logs/$name.log" 2>&1 || {
		result=FAILED
		failed=1
		grep -E '^ *(--- FAIL|FAIL|SURVIVED|[a-z_]+_test\.go:)' "$logs/$name.log" | head -n 40
	}
	table+=("$(printf '%-14s %-7s %5d s' "$name" "$result" $((SECONDS - begun)))")
	echo "${table[-1]}"
}

# Everything with the race detector, the programs too, and a million rows in one transaction.
part race go test -race -tags nightly -count=1 -timeout 60m ./...
part fuzz scripts/fuzz.sh 2m
part sim-poll go test ./internal/simtest -run TestSim -count=1 -timeout 0 -v -args -shipped -capture=poll -seconds=120
part sim-wal go test ./internal/simtest -run TestSim -count=1 -timeout 0 -v -args -shipped -capture=wal -seconds=120
part postgres scripts/test-pg.sh
part mutants go run ./internal/mutants
part stack scripts/stack/test.sh Single
part stack-cluster scripts/stack/test.sh Cluster

echo
printf '%s\n' "${table[@]}"
exit $failed
