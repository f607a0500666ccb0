#!/usr/bin/env bash
# What make test runs: every test but those that take long, which make nightly runs as well. Packages whose tests run in
# their own process have the race detector. The others start the programs, and wait for them more than they work: they
# run at the same time, plain; one of their tests has programs with the race detector.
set -uo pipefail
cd "$(dirname "$0")/.."

programs=(./internal/e2e ./internal/simtest)
mapfile -t others < <(go list ./... | grep -vE '/internal/(e2e|simtest)$')
[ ${#others[@]} -gt 0 ] || exit 1

go test -vet=off -timeout 10m "${programs[@]}" &
end_to_end=$!
go test -vet=off -timeout 10m -race "${others[@]}"
in_process=$?
wait $end_to_end && [ $in_process = 0 ]
