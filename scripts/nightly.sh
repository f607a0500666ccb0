#!/usr/bin/env bash
# Runs what is too slow for make test. It goes on after a failure. At the end it prints which parts passed and which
# failed, and how many seconds each took. The log of each part is in .cache/nightly.
set -uo pipefail
cd "$(dirname "$0")/.."
. scripts/tmpdir.sh

logs=.cache/nightly
mkdir -p "$logs"
: >"$logs/results"

# part NAME COMMAND... runs one part. If it fails, its most telling lines are printed.
part() {
	local name=$1 begun=$SECONDS result=passed
	shift
	echo "=== $name ($(date -u +%H:%M:%S)): $*; log: $logs/$name.log"
	"$@" >"$logs/$name.log" 2>&1 || {
		result=FAILED
		grep -E '^ *(--- FAIL|FAIL|SURVIVED|[a-z_]+_test\.go:)' "$logs/$name.log" | head -n 40
	}
	printf '%-14s %-7s %5d s\n' "$name" "$result" $((SECONDS - begun)) | tee -a "$logs/results"
}

# All tests, those with the build tag nightly too. The race detector is in them, and in the programs that they start but
# for those that are built as users build them. They need both cores: one package at a time.
part race go test -race -tags nightly -count=1 -timeout 60m -p 1 ./...

# Fuzzing only needs time. The parts beside it wait more than they work, and come first.
part fuzz nice -n 19 scripts/fuzz.sh 2m &
fuzzing=$!
part sim-poll go test ./internal/simtest -run TestSim -count=1 -timeout 0 -v -args -shipped -capture=poll -seconds=120
part sim-wal go test ./internal/simtest -run TestSim -count=1 -timeout 0 -v -args -shipped -capture=wal -seconds=120
part postgres scripts/test-pg.sh
wait $fuzzing

part mutants go run ./internal/mutants
part stack scripts/stack/test.sh Single
part stack-cluster scripts/stack/test.sh Cluster

echo
cat "$logs/results"
! grep -q FAILED "$logs/results"
