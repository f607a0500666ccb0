-- Set-up of orders for the lockstep bridge, to be run on the primary as the owner of the tables:
-- psql -v ON_ERROR_STOP=1 -f THIS_FILE, without -1. It may be run again.
SET search_path = "$user", public; -- as the types below were named under it

-- The transaction that last wrote a row of orders. Adding the column rewrites nothing: rows that exist get this transaction.
-- Column and trigger come in one transaction, so that no row changes between them.
BEGIN;
SET LOCAL lock_timeout = '5s'; -- rather fail than make others wait; run it again then
CREATE SCHEMA IF NOT EXISTS "lockstep";
ALTER TABLE "public"."orders" ADD COLUMN IF NOT EXISTS "txid" bigint NOT NULL DEFAULT txid_current();
-- The trigger's name sorts last, so that it fires after other BEFORE triggers, and wins; ALWAYS, so that logical replication
-- and restores (session_replication_role = replica) fire it too.
CREATE OR REPLACE FUNCTION "lockstep"."stamp"() RETURNS trigger LANGUAGE plpgsql AS $lockstep$
BEGIN NEW."txid" := pg_catalog.txid_current(); RETURN NEW; END $lockstep$;
CREATE OR REPLACE TRIGGER zzz_lockstep_stamp BEFORE INSERT OR UPDATE ON "public"."orders" FOR EACH ROW EXECUTE FUNCTION "lockstep"."stamp"();
ALTER TABLE "public"."orders" ENABLE ALWAYS TRIGGER zzz_lockstep_stamp;
COMMIT;

-- The index that every poll uses. Built outside of a transaction, beside running writers.
CREATE INDEX CONCURRENTLY IF NOT EXISTS "orders_lockstep_idx" ON "public"."orders" ("txid");

-- Deletes: polling can't see that a row is gone. A delete stays a real one; its key is kept in a table of tombstones, and the bridge
-- reads a view over both. Leave it out (bridge sql -no-tombstones) if rows are never deleted.
-- A tombstone may be removed once the bridge's heartbeats are past its txid: DELETE FROM "lockstep"."public.orders" WHERE "txid" < …
BEGIN;
SET LOCAL lock_timeout = '5s';
CREATE TABLE IF NOT EXISTS "lockstep"."public.orders" ("region" text, "id" bigint, "txid" bigint NOT NULL, PRIMARY KEY ("region", "id"));
CREATE INDEX IF NOT EXISTS "public.orders_txid" ON "lockstep"."public.orders" ("txid");
-- SECURITY DEFINER: who deletes needs no right to the tombstones.
CREATE OR REPLACE FUNCTION "lockstep"."public.orders"() RETURNS trigger LANGUAGE plpgsql
  SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $lockstep$
#variable_conflict use_column
BEGIN
  IF TG_OP = 'TRUNCATE' THEN
    INSERT INTO "lockstep"."public.orders" ("region", "id", "txid") SELECT "region", "id", pg_catalog.txid_current() FROM "public"."orders"
      ON CONFLICT ("region", "id") DO UPDATE SET "txid" = EXCLUDED."txid";
  ELSE
    INSERT INTO "lockstep"."public.orders" ("region", "id", "txid") VALUES (OLD."region", OLD."id", pg_catalog.txid_current())
      ON CONFLICT ("region", "id") DO UPDATE SET "txid" = EXCLUDED."txid";
  END IF;
  RETURN NULL;
END $lockstep$;
CREATE OR REPLACE TRIGGER zzz_lockstep_delete AFTER DELETE ON "public"."orders" FOR EACH ROW EXECUTE FUNCTION "lockstep"."public.orders"();
ALTER TABLE "public"."orders" ENABLE ALWAYS TRIGGER zzz_lockstep_delete;
-- A changed key is a delete of the old one; other updates do not call the function.
CREATE OR REPLACE TRIGGER zzz_lockstep_rekey AFTER UPDATE ON "public"."orders" FOR EACH ROW WHEN (OLD."region" IS DISTINCT FROM NEW."region" OR OLD."id" IS DISTINCT FROM NEW."id") EXECUTE FUNCTION "lockstep"."public.orders"();
ALTER TABLE "public"."orders" ENABLE ALWAYS TRIGGER zzz_lockstep_rekey;
CREATE OR REPLACE TRIGGER zzz_lockstep_truncate BEFORE TRUNCATE ON "public"."orders" FOR EACH STATEMENT EXECUTE FUNCTION "lockstep"."public.orders"();
ALTER TABLE "public"."orders" ENABLE ALWAYS TRIGGER zzz_lockstep_truncate;
-- A tombstone does not show while a row has its key again. If columns were dropped or retyped, drop the view first.
CREATE OR REPLACE VIEW "public"."orders_lockstep" AS
SELECT false AS "deleted", t."region" AS "region", t."id" AS "id", t."total" AS "total", t."txid"::bigint AS "txid"
  FROM "public"."orders" t
UNION ALL
SELECT true, d."region", d."id", NULL::numeric(12,2), d."txid"
  FROM "lockstep"."public.orders" d
 WHERE NOT EXISTS (SELECT FROM "public"."orders" t WHERE t."region" = d."region" AND t."id" = d."id");
COMMIT;

-- Optional: wakes the bridge at commit, where it would else look every BRIDGE_POLL_INTERVAL. Leave it out (bridge sql -no-notify)
-- if many sessions commit changes of orders at once, since commits that notify wait for each other,
-- and if it is changed in prepared transactions (PREPARE TRANSACTION), which must not notify.
BEGIN;
SET LOCAL lock_timeout = '5s';
CREATE OR REPLACE FUNCTION "lockstep".notify() RETURNS trigger LANGUAGE plpgsql AS $lockstep$
BEGIN PERFORM pg_catalog.pg_notify('lockstep', TG_TABLE_SCHEMA || '.' || TG_TABLE_NAME); RETURN NULL; END $lockstep$;
CREATE OR REPLACE TRIGGER zzz_lockstep_notify AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON "public"."orders" FOR EACH STATEMENT EXECUTE FUNCTION "lockstep".notify();
ALTER TABLE "public"."orders" ENABLE ALWAYS TRIGGER zzz_lockstep_notify;
COMMIT;

-- The bridge's role: it may log in and read orders_lockstep, nothing else. Give it a password by \password "lockstep" in psql.
-- It may call pg_control_system() and its like as any role may, unless that was revoked; then a superuser must, besides:
-- GRANT EXECUTE ON FUNCTION pg_control_system(), pg_control_checkpoint(), pg_control_recovery() TO "lockstep";
-- A table's owner who may not grant CONNECT and USAGE gets a warning below; commonly every role has both.
-- So that the bridge can name the session that holds its progress back, a superuser may:
-- GRANT pg_read_all_stats TO "lockstep";
DO $lockstep$ BEGIN
  IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = 'lockstep') THEN CREATE ROLE "lockstep" LOGIN; END IF;
END $lockstep$;
GRANT CONNECT ON DATABASE "shop" TO "lockstep";
GRANT USAGE ON SCHEMA "public" TO "lockstep";
GRANT SELECT ON "public"."orders_lockstep" TO "lockstep";

-- Then name it to the bridge, and try bridge check:
-- BRIDGE_TABLES='orders_lockstep(key=region+id)'
