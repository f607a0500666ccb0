#!/usr/bin/env bash
# Runs every fuzz target of the module, one after another, each for the time given (20s).
set -euo pipefail
cd "$(dirname "$0")/.."

time=${1:-20s}
found=0
while IFS=: read -r file line; do
	[ -n "$file" ] || continue
	name=$(sed -E 's/^func (Fuzz[A-Za-z0-9_]*).*/\1/' <<<"$line")
	dir=$(dirname "$file")
	echo "fuzz $name in $dir for $time"
	go test -run '^$' -fuzz "^$name\$" -fuzztime "$time" "$dir"
	found=$((found + 1))
done < <(grep -rE --include='*_test.go' --exclude-dir=.git --exclude-dir=.build '^func Fuzz[A-Za-z0-9_]*\(' .)
if [ "$found" = 0 ]; then
	echo "no fuzz target was found, and there are some: mend this script" >&2
	exit 1
fi
echo "$found fuzz targets passed"
