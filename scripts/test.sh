#!/usr/bin/env bash
# Runs all tests but the slow ones, for make test. Most packages are tested in the test's own process, with the race
# detector. The end-to-end tests and the simulation start programs. They run after the others and without the race
# detector; make nightly runs them with it. Each half keeps two processors busy: at the same time they would take as long,
# and wait for each other until leases run out.
set -uo pipefail
cd "$(dirname "$0")/.."
. scripts/tmpdir.sh

programs=(./internal/e2e ./internal/simtest)
mapfile -t others < <(go list ./... | grep -vE '/internal/(e2e|simtest)$')
[ ${#others[@]} -gt 0 ] || exit 1

go test -vet=off -timeout 15m -race "${others[@]}"
in_process=$?
go test -vet=off -timeout 15m "${programs[@]}" && [ $in_process = 0 ]
