-- Set-up of orders for the lockstep bridge. Run it on the primary, as the owner of the tables:
-- psql -v ON_ERROR_STOP=1 -f THIS_FILE (without -1). You may run it again.
SET search_path = "$user", public; -- the names of types below depend on it
SET client_min_messages = warning; -- it is normal that some of this is there already

-- A column for the ID of the transaction that last wrote a row of orders. Adding it does not rewrite the table:
-- existing rows get the ID of this transaction. Column and trigger come in one transaction, so that no write falls between them.
-- A new column changes what a few statements do. Look for them before you run this:
--   COPY orders FROM without a list of columns then fails. Name the columns.
--   INSERT INTO other SELECT * FROM orders then fails, or fills one more column of the other table. Name the columns.
--   SELECT * and COPY orders TO then give one more column. NATURAL JOIN of two such tables compares the column, too.
-- If you can't change such statements, read the WAL instead, which adds no column: bridge sql 'orders(capture=wal)'
-- Or rename the table, prepare it under its new name, and put a view with its old name and columns in its place.
-- (COPY into the view needs a trigger INSTEAD OF INSERT.)
BEGIN;
SET LOCAL lock_timeout = '5s'; -- fail rather than make others wait; then run this again
DO $lockstep$ BEGIN -- fail rather than change what is not the bridge's
  IF EXISTS (SELECT FROM pg_attribute WHERE attrelid = to_regclass('"public"."orders"') AND attname = 'txid' AND NOT attisdropped
     AND col_description(attrelid, attnum) IS DISTINCT FROM 'lockstep bridge: ID of the transaction that last wrote the row') THEN
    RAISE EXCEPTION USING MESSAGE = 'column txid of orders is not the bridge''s: run bridge sql again'; END IF;
  IF to_regprocedure('"lockstep"."stamp"()') IS NOT NULL AND obj_description(to_regprocedure('"lockstep"."stamp"()'), 'pg_proc') IS DISTINCT FROM 'lockstep bridge: sets column txid' THEN
    RAISE EXCEPTION USING MESSAGE = 'function lockstep.stamp() is not the bridge''s: run bridge sql again'; END IF;
  IF EXISTS (SELECT FROM pg_trigger WHERE tgrelid = to_regclass('"public"."orders"') AND tgname IN ('zzz_lockstep_stamp')
     AND tgfoid IS DISTINCT FROM to_regprocedure('"lockstep"."stamp"()')) THEN
    RAISE EXCEPTION USING MESSAGE = 'a trigger of orders whose name begins with zzz_lockstep_ is not the bridge''s: run bridge sql again'; END IF;
END $lockstep$;
CREATE SCHEMA IF NOT EXISTS "lockstep";
ALTER TABLE "public"."orders" ADD COLUMN IF NOT EXISTS "txid" bigint NOT NULL DEFAULT txid_current();
COMMENT ON COLUMN "public"."orders"."txid" IS 'lockstep bridge: ID of the transaction that last wrote the row';
-- BEFORE triggers fire in the order of their names, and the last one wins: so this name begins with zzz.
-- ALWAYS: logical replication and restores (session_replication_role = replica) fire the trigger, too.
CREATE OR REPLACE FUNCTION "lockstep"."stamp"() RETURNS trigger LANGUAGE plpgsql AS $lockstep$
BEGIN NEW."txid" := pg_catalog.txid_current(); RETURN NEW; END $lockstep$;
COMMENT ON FUNCTION "lockstep"."stamp"() IS 'lockstep bridge: sets column txid';
CREATE OR REPLACE TRIGGER zzz_lockstep_stamp BEFORE INSERT OR UPDATE ON "public"."orders" FOR EACH ROW EXECUTE FUNCTION "lockstep"."stamp"();
ALTER TABLE "public"."orders" ENABLE ALWAYS TRIGGER zzz_lockstep_stamp;
COMMIT;

-- The index that every poll uses. It is built outside a transaction, and writers do not wait for it.
CREATE INDEX CONCURRENTLY IF NOT EXISTS "orders_lockstep_idx" ON "public"."orders" ("txid");

-- Deletes. Polling can't see that a row is gone. So a trigger keeps the key of each deleted row in a table of tombstones, and the
-- bridge reads a view over both tables. Leave this part out (bridge sql -no-tombstones) if rows are never deleted.
-- You may remove a tombstone once the bridge's heartbeats have passed its txid: DELETE FROM "lockstep"."public.orders" WHERE "txid" < …
-- Before you rename a column of the key, or give it another type, remove this part. Else the table's own DELETE fails:
--   BEGIN; DROP FUNCTION "lockstep"."public.orders"() CASCADE; DROP VIEW "public"."orders_lockstep"; DROP TABLE "lockstep"."public.orders"; COMMIT;
BEGIN;
SET LOCAL lock_timeout = '5s';
DO $lockstep$ BEGIN -- fail rather than change what is not the bridge's
  IF to_regclass('"lockstep"."public.orders"') IS NOT NULL AND obj_description(to_regclass('"lockstep"."public.orders"'), 'pg_class') IS DISTINCT FROM 'lockstep bridge: keys of deleted rows of orders' THEN
    RAISE EXCEPTION USING MESSAGE = 'lockstep."public.orders" is not the bridge''s: run bridge sql again'; END IF;
  IF to_regprocedure('"lockstep"."public.orders"()') IS NOT NULL AND obj_description(to_regprocedure('"lockstep"."public.orders"()'), 'pg_proc') IS DISTINCT FROM 'lockstep bridge: keeps the key of a deleted row of orders' THEN
    RAISE EXCEPTION USING MESSAGE = 'function lockstep."public.orders"() is not the bridge''s: run bridge sql again'; END IF;
  IF EXISTS (SELECT FROM pg_trigger WHERE tgrelid = to_regclass('"public"."orders"') AND tgname IN ('zzz_lockstep_delete', 'zzz_lockstep_rekey', 'zzz_lockstep_truncate')
     AND tgfoid IS DISTINCT FROM to_regprocedure('"lockstep"."public.orders"()')) THEN
    RAISE EXCEPTION USING MESSAGE = 'a trigger of orders whose name begins with zzz_lockstep_ is not the bridge''s: run bridge sql again'; END IF;
  IF to_regclass('"public"."orders_lockstep"') IS NOT NULL AND obj_description(to_regclass('"public"."orders_lockstep"'), 'pg_class') IS DISTINCT FROM 'lockstep bridge: rows and tombstones of orders' THEN
    RAISE EXCEPTION USING MESSAGE = 'orders_lockstep is not the bridge''s: run bridge sql again'; END IF;
END $lockstep$;
CREATE TABLE IF NOT EXISTS "lockstep"."public.orders" ("region" text, "id" bigint, "txid" bigint NOT NULL, PRIMARY KEY ("region", "id"));
COMMENT ON TABLE "lockstep"."public.orders" IS 'lockstep bridge: keys of deleted rows of orders';
CREATE INDEX IF NOT EXISTS "public.orders_txid" ON "lockstep"."public.orders" ("txid");
-- SECURITY DEFINER: a role that deletes rows needs no right to the tombstones. TG_RELID: the table may get another name.
CREATE OR REPLACE FUNCTION "lockstep"."public.orders"() RETURNS trigger LANGUAGE plpgsql
  SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $lockstep$
#variable_conflict use_column
BEGIN
  IF TG_OP = 'TRUNCATE' THEN
    EXECUTE 'INSERT INTO "lockstep"."public.orders" ("region", "id", "txid") SELECT "region", "id", pg_catalog.txid_current() FROM '
      || TG_RELID::pg_catalog.regclass || ' ON CONFLICT ("region", "id") DO UPDATE SET "txid" = EXCLUDED."txid"';
  ELSE
    INSERT INTO "lockstep"."public.orders" ("region", "id", "txid") VALUES (OLD."region", OLD."id", pg_catalog.txid_current())
      ON CONFLICT ("region", "id") DO UPDATE SET "txid" = EXCLUDED."txid";
  END IF;
  RETURN NULL;
END $lockstep$;
COMMENT ON FUNCTION "lockstep"."public.orders"() IS 'lockstep bridge: keeps the key of a deleted row of orders';
CREATE OR REPLACE TRIGGER zzz_lockstep_delete AFTER DELETE ON "public"."orders" FOR EACH ROW EXECUTE FUNCTION "lockstep"."public.orders"();
ALTER TABLE "public"."orders" ENABLE ALWAYS TRIGGER zzz_lockstep_delete;
-- An UPDATE of the key deletes the old key. Other updates do not call the function.
CREATE OR REPLACE TRIGGER zzz_lockstep_rekey AFTER UPDATE ON "public"."orders" FOR EACH ROW WHEN (OLD."region" IS DISTINCT FROM NEW."region" OR OLD."id" IS DISTINCT FROM NEW."id") EXECUTE FUNCTION "lockstep"."public.orders"();
ALTER TABLE "public"."orders" ENABLE ALWAYS TRIGGER zzz_lockstep_rekey;
CREATE OR REPLACE TRIGGER zzz_lockstep_truncate BEFORE TRUNCATE ON "public"."orders" FOR EACH STATEMENT EXECUTE FUNCTION "lockstep"."public.orders"();
ALTER TABLE "public"."orders" ENABLE ALWAYS TRIGGER zzz_lockstep_truncate;
-- The view hides a tombstone while a row has its key again. If columns were dropped or got another type, drop the view first.
CREATE OR REPLACE VIEW "public"."orders_lockstep" AS
SELECT false AS "deleted", t."region" AS "region", t."id" AS "id", t."total" AS "total", t."txid"::bigint AS "txid"
  FROM "public"."orders" t
UNION ALL
SELECT true, d."region", d."id", NULL::numeric(12,2), d."txid"
  FROM "lockstep"."public.orders" d
 WHERE NOT EXISTS (SELECT FROM "public"."orders" t WHERE t."region" = d."region" AND t."id" = d."id");
COMMENT ON VIEW "public"."orders_lockstep" IS 'lockstep bridge: rows and tombstones of orders';
COMMIT;

-- Optional: a trigger that wakes the bridge at commit. Without it the bridge polls every BRIDGE_POLL_INTERVAL.
-- Leave it out (bridge sql -no-notify) if many sessions change orders at the same time, because commits that notify
-- wait for each other; and if prepared transactions (PREPARE TRANSACTION) change it, because these must not notify.
BEGIN;
SET LOCAL lock_timeout = '5s';
DO $lockstep$ BEGIN -- fail rather than change what is not the bridge's
  IF to_regprocedure('"lockstep"."notify"()') IS NOT NULL AND obj_description(to_regprocedure('"lockstep"."notify"()'), 'pg_proc') IS DISTINCT FROM 'lockstep bridge: wakes the bridge' THEN
    RAISE EXCEPTION USING MESSAGE = 'function lockstep.notify() is not the bridge''s: run bridge sql again'; END IF;
  IF EXISTS (SELECT FROM pg_trigger WHERE tgrelid = to_regclass('"public"."orders"') AND tgname IN ('zzz_lockstep_notify')
     AND tgfoid IS DISTINCT FROM to_regprocedure('"lockstep"."notify"()')) THEN
    RAISE EXCEPTION USING MESSAGE = 'a trigger of orders whose name begins with zzz_lockstep_ is not the bridge''s: run bridge sql again'; END IF;
END $lockstep$;
CREATE OR REPLACE FUNCTION "lockstep"."notify"() RETURNS trigger LANGUAGE plpgsql AS $lockstep$
BEGIN PERFORM pg_catalog.pg_notify('lockstep', TG_TABLE_SCHEMA || '.' || TG_TABLE_NAME); RETURN NULL; END $lockstep$;
COMMENT ON FUNCTION "lockstep"."notify"() IS 'lockstep bridge: wakes the bridge';
CREATE OR REPLACE TRIGGER zzz_lockstep_notify AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON "public"."orders" FOR EACH STATEMENT EXECUTE FUNCTION "lockstep"."notify"();
ALTER TABLE "public"."orders" ENABLE ALWAYS TRIGGER zzz_lockstep_notify;
COMMIT;

-- The role of the bridge: it may log in and read orders_lockstep, nothing else.
-- A new role has no password: set one in psql with \password "lockstep"
-- The bridge calls some functions that every role may call. If somebody has revoked that, a superuser must run:
-- GRANT EXECUTE ON FUNCTION pg_control_system(), pg_control_checkpoint(), pg_control_recovery() TO "lockstep";
-- Optional: with this, the bridge can name the session whose open transaction holds clients' positions back. As a superuser:
-- GRANT pg_read_all_stats TO "lockstep";
-- If you may not grant CONNECT and USAGE, Postgres prints a warning below. Usually every role has both already.
DO $lockstep$ BEGIN
  IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = 'lockstep') THEN
    CREATE ROLE "lockstep" LOGIN;
    COMMENT ON ROLE "lockstep" IS 'lockstep bridge: role of the bridge';
  END IF;
END $lockstep$;
GRANT CONNECT ON DATABASE "shop" TO "lockstep";
GRANT USAGE ON SCHEMA "public" TO "lockstep";
GRANT SELECT ON "public"."orders_lockstep" TO "lockstep";

-- Then configure the bridge with this, and run bridge check:
-- BRIDGE_TABLES='orders_lockstep(key=region+id)'
