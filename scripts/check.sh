#!/usr/bin/env bash
# Checks the code without running it. Each check runs even if an earlier one failed.
set -uo pipefail
cd "$(dirname "$0")/.."

failed=()
check() {
	local name=$1
	shift
	echo "$name"
	"$@" || failed+=("$name")
}

format() {
	local wrong
	wrong=$(git ls-files -co --exclude-standard '*.go' | while read -r f; do [ -e "$f" ] && echo "$f"; done |
		xargs -r go run mvdan.cc/gofumpt@v0.12.0 -l) || return 1
	[ -z "$wrong" ] || {
		echo "not formatted, run make fmt:"
		echo "$wrong"
		return 1
	}
}

# govulncheck ends with status 3 if it found something. An error about its database is not a finding.
vulnerabilities() {
	local out status=0
	out=$(timeout 180 go run golang.org/x/vuln/cmd/govulncheck@v1.1.4 ./... 2>&1) || status=$?
	case $status in
	0) echo "govulncheck: none known" ;;
	124) echo "govulncheck: NOT CHECKED (it took more than 3 minutes)" ;;
	*)
		if grep -q 'fetching vulnerabilities' <<<"$out" && ! grep -q '^Vulnerability #' <<<"$out"; then
			echo "govulncheck: NOT CHECKED (its database can't be reached)"
		else
			echo "$out"
			return 1
		fi
		;;
	esac
}

check gofumpt format
check vet go vet -tags stack,nightly ./...
check staticcheck go run honnef.co/go/tools/cmd/staticcheck@v0.8.2 -tags stack,nightly ./...
check "import rules" go test -count=1 ./internal/archtest
check govulncheck vulnerabilities

if [ ${#failed[@]} -gt 0 ]; then
	printf 'FAILED: %s\n' "${failed[@]}" >&2
	exit 1
fi
echo "all checks passed"
