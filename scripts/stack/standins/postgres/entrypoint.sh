# Does what the official image's entrypoint does, as far as the stack needs it. At the first start it makes the cluster,
# the database and the password, and runs the files in /docker-entrypoint-initdb.d.
set -eu
[ "${1:-}" = postgres ] || exec "$@"
if [ ! -s "$PGDATA/PG_VERSION" ]; then
	user=${POSTGRES_USER:-postgres} db=${POSTGRES_DB:-postgres}
	initdb -U "$user" --pwfile=<(echo "${POSTGRES_PASSWORD:?}") --auth-host="${POSTGRES_HOST_AUTH_METHOD:-scram-sha-256}" --auth-local=trust >/dev/null
	echo "host all all all ${POSTGRES_HOST_AUTH_METHOD:-scram-sha-256}" >>"$PGDATA/pg_hba.conf"
	pg_ctl -w -o "-c listen_addresses=''" start >/dev/null
	psql=(psql -v ON_ERROR_STOP=1 --no-psqlrc -U "$user")
	[ "$db" = postgres ] || "${psql[@]}" -d postgres -c "CREATE DATABASE \"$db\"" >/dev/null
	for f in /docker-entrypoint-initdb.d/*; do
		case $f in
		*.sh) bash "$f" ;;
		*.sql) "${psql[@]}" -q -d "$db" -f "$f" ;;
		esac
	done
	pg_ctl -m fast -w stop >/dev/null
fi
exec "$@" -c listen_addresses='*'
