#!/usr/bin/env bash
# Runs every fuzz target of the module, one after another, each for the given time (20s). It goes on after a failure.
set -euo pipefail
cd "$(dirname "$0")/.."

time=${1:-20s}
found=0
failed=
log=$(mktemp)
trap 'rm -f "$log"' EXIT

# fuzz runs one target. At the end of its time Go's fuzzer may fail with "context deadline exceeded" and no failing
# input. That says nothing about the target, so it runs once more.
fuzz() {
	go test -run '^$' -fuzz "^$1\$" -fuzztime "$time" "$2" 2>&1 | tee "$log" && return
	grep -q 'context deadline exceeded' "$log" && ! grep -q 'Failing input written' "$log" || return 1
	echo "fuzz $1 in $2 again: the fuzzer ran into its own time limit"
	go test -run '^$' -fuzz "^$1\$" -fuzztime "$time" "$2"
}

while IFS=: read -r file line; do
	[ -n "$file" ] || continue
	name=$(sed -E 's/^func (Fuzz[A-Za-z0-9_]*).*/\1/' <<<"$line")
	dir=$(dirname "$file")
	echo "fuzz $name in $dir for $time"
	fuzz "$name" "$dir" || failed+=" $name"
	found=$((found + 1))
done < <(grep -rE --include='*_test.go' --exclude-dir=.git --exclude-dir=.build --exclude-dir=.cache '^func Fuzz[A-Za-z0-9_]*\(' .)
if [ "$found" = 0 ]; then
	echo "this script found no fuzz target, but there are some: fix the script" >&2
	exit 1
fi
if [ -n "$failed" ]; then
	echo "these of $found fuzz targets failed:$failed" >&2
	exit 1
fi
echo "$found fuzz targets passed"
