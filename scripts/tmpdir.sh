# Sourced by what runs the tests. They make and remove a thousand small files for each cluster of Postgres. On a disk,
# the file system then takes more time than the tests. So their files are in memory, where there is enough of it.
if [ -z "${TMPDIR:-}" ] && [ "$(df --output=avail -B1M /dev/shm 2>/dev/null | tail -n 1)" -gt 8192 ] 2>/dev/null &&
	[ "$(awk '/^MemAvailable/ { print int($2 / 1024) }' /proc/meminfo)" -gt 12288 ] &&
	! findmnt -no OPTIONS /dev/shm | grep -q noexec; then
	TMPDIR=$(mktemp -d /dev/shm/lockstep.XXXXXX)
	chmod 755 "$TMPDIR" # Postgres runs as another user
	export TMPDIR
	trap 'rm -rf "$TMPDIR"' EXIT
fi
