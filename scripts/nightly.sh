#!/usr/bin/env bash
# Runs everything, also what is too slow for make test, for make nightly. It goes on after a failure. At the end it
# prints which parts passed and which failed, and how many seconds each took. The log of each part is in .cache/nightly.
set -uo pipefail
cd "$(dirname "$0")/.."

logs=.cache/nightly
mkdir -p "$logs"
table=() failed=0

# part NAME COMMAND... runs one part. If it fails, its most telling lines are printed.
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

# All tests, those with the build tag nightly too. The race detector is in them, and in the programs that they start but
# for those that are built as users build them.
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
