package simtest

// Accounts and Orders are the tables of the workload. The view OrdersFeed has the orders, and those that were deleted.
const (
	Accounts   = "accounts"
	Orders     = "orders"
	OrdersFeed = "orders_feed"
)

// StartAccounts and StartBalance are what the workload begins with. Sum is the sum of the balances, which never
// changes.
const (
	StartAccounts = 150
	StartBalance  = 1000
	Sum           = StartAccounts * StartBalance
)

// Schema creates the relations. Triggers count ver under the row's lock (for orders under an advisory lock that the
// writers take), so it is the commit order of a key's versions. op is the statement's own number. history keeps each
// version, commits each transaction that was committed. In history, gone says that the row was deleted for good, blob
// is the MD5 of its large value, and at is when the version was written, in Unix seconds.
const Schema = `
CREATE TABLE history (relation text NOT NULL, key text NOT NULL, ver bigint NOT NULL, op bigint NOT NULL,
	txid bigint NOT NULL, deleted boolean NOT NULL, gone boolean NOT NULL DEFAULT false, blob text,
	at bigint NOT NULL DEFAULT floor(extract(epoch FROM clock_timestamp())));
CREATE TABLE commits (tx bigint PRIMARY KEY);

CREATE TABLE accounts (id bigint PRIMARY KEY, balance bigint NOT NULL, deleted boolean NOT NULL DEFAULT false, note text,
	ver bigint NOT NULL, op bigint NOT NULL, txid bigint NOT NULL);
CREATE INDEX ON accounts (txid);
CREATE FUNCTION accounts_stamp() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	NEW.txid := txid_current();
	NEW.ver := CASE TG_OP WHEN 'INSERT' THEN 1 ELSE OLD.ver + 1 END;
	INSERT INTO history VALUES ('accounts', NEW.id::text, NEW.ver, NEW.op, NEW.txid, NEW.deleted);
	RETURN NEW;
END $$;
CREATE TRIGGER zzz_stamp BEFORE INSERT OR UPDATE ON accounts FOR EACH ROW EXECUTE FUNCTION accounts_stamp();
ALTER TABLE accounts ENABLE ALWAYS TRIGGER zzz_stamp;

CREATE TABLE orders (shop text COLLATE "C", no integer, price numeric, at timestamptz, tags text[], attrs jsonb, raw bytea,
	part double precision, note text, ver bigint NOT NULL, op bigint NOT NULL, txid bigint NOT NULL, PRIMARY KEY (shop, no));
CREATE INDEX ON orders (txid);
CREATE TABLE orders_gone (shop text COLLATE "C", no integer, ver bigint NOT NULL, op bigint NOT NULL, txid bigint NOT NULL,
	PRIMARY KEY (shop, no));
CREATE INDEX ON orders_gone (txid);
CREATE FUNCTION orders_stamp() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	NEW.txid := txid_current();
	IF TG_OP = 'INSERT' THEN
		NEW.ver := 1 + COALESCE((SELECT g.ver FROM orders_gone g WHERE g.shop = NEW.shop AND g.no = NEW.no), 0);
	ELSE
		NEW.ver := OLD.ver + 1;
	END IF;
	INSERT INTO history VALUES ('orders', NEW.shop || '/' || NEW.no, NEW.ver, NEW.op, NEW.txid, false);
	RETURN NEW;
END $$;
CREATE TRIGGER zzz_stamp BEFORE INSERT OR UPDATE ON orders FOR EACH ROW EXECUTE FUNCTION orders_stamp();
ALTER TABLE orders ENABLE ALWAYS TRIGGER zzz_stamp;
CREATE FUNCTION orders_bury() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO orders_gone VALUES (OLD.shop, OLD.no, OLD.ver + 1, OLD.op, txid_current())
	ON CONFLICT (shop, no) DO UPDATE SET ver = EXCLUDED.ver, op = EXCLUDED.op, txid = EXCLUDED.txid;
	INSERT INTO history VALUES ('orders', OLD.shop || '/' || OLD.no, OLD.ver + 1, OLD.op, txid_current(), true);
	RETURN NULL;
END $$;
CREATE TRIGGER zzz_bury AFTER DELETE ON orders FOR EACH ROW EXECUTE FUNCTION orders_bury();
ALTER TABLE orders ENABLE ALWAYS TRIGGER zzz_bury;

CREATE VIEW orders_feed AS
SELECT shop, no, price, at, tags, attrs, raw, part, note, ver, op, txid, false AS deleted FROM orders
UNION ALL
SELECT g.shop, g.no, NULL, NULL, NULL, NULL, NULL, NULL, NULL, g.ver, g.op, g.txid, true FROM orders_gone g
WHERE NOT EXISTS (SELECT FROM orders o WHERE o.shop = g.shop AND o.no = g.no);
`

// walSchema is added for capture=wal. Rows of both relations are then deleted for good, change their keys, and are
// inserted again. blob is a large value that Postgres stores out of line. Only an UPDATE of blob itself writes it to
// the WAL; all others leave it unchanged, so that the WAL does not have it.
const walSchema = `
ALTER TABLE accounts ADD COLUMN blob text, ALTER COLUMN blob SET STORAGE EXTERNAL;
ALTER TABLE orders ADD COLUMN blob text, ALTER COLUMN blob SET STORAGE EXTERNAL;

CREATE TABLE accounts_gone (id bigint PRIMARY KEY, ver bigint NOT NULL);
CREATE FUNCTION bury_account(id bigint, ver bigint, op bigint) RETURNS void LANGUAGE sql AS $$
	INSERT INTO accounts_gone AS g VALUES ($1, $2) ON CONFLICT (id) DO UPDATE SET ver = EXCLUDED.ver;
	INSERT INTO history VALUES ('accounts', $1::text, $2, $3, txid_current(), true, true);
$$;
CREATE OR REPLACE FUNCTION accounts_stamp() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	NEW.txid := txid_current();
	IF TG_OP = 'UPDATE' AND NEW.id = OLD.id THEN
		NEW.ver := OLD.ver + 1;
	ELSE
		NEW.ver := 1 + COALESCE((SELECT g.ver FROM accounts_gone g WHERE g.id = NEW.id), 0);
	END IF;
	IF TG_OP = 'UPDATE' AND NEW.id <> OLD.id THEN
		PERFORM bury_account(OLD.id, OLD.ver + 1, NEW.op);
	END IF;
	INSERT INTO history VALUES ('accounts', NEW.id::text, NEW.ver, NEW.op, NEW.txid, NEW.deleted, false, md5(NEW.blob));
	RETURN NEW;
END $$;
CREATE FUNCTION accounts_bury() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	PERFORM bury_account(OLD.id, OLD.ver + 1, OLD.op);
	RETURN NULL;
END $$;
CREATE TRIGGER zzz_bury AFTER DELETE ON accounts FOR EACH ROW EXECUTE FUNCTION accounts_bury();
ALTER TABLE accounts ENABLE ALWAYS TRIGGER zzz_bury;

CREATE FUNCTION bury_order(shop text, no integer, ver bigint, op bigint) RETURNS void LANGUAGE sql AS $$
	INSERT INTO orders_gone VALUES ($1, $2, $3, $4, txid_current())
	ON CONFLICT (shop, no) DO UPDATE SET ver = EXCLUDED.ver, op = EXCLUDED.op, txid = EXCLUDED.txid;
	INSERT INTO history VALUES ('orders', $1 || '/' || $2, $3, $4, txid_current(), true, true);
$$;
CREATE OR REPLACE FUNCTION orders_stamp() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	NEW.txid := txid_current();
	IF TG_OP = 'UPDATE' AND (NEW.shop, NEW.no) = (OLD.shop, OLD.no) THEN
		NEW.ver := OLD.ver + 1;
	ELSE
		NEW.ver := 1 + COALESCE((SELECT g.ver FROM orders_gone g WHERE g.shop = NEW.shop AND g.no = NEW.no), 0);
	END IF;
	IF TG_OP = 'UPDATE' AND (NEW.shop, NEW.no) <> (OLD.shop, OLD.no) THEN
		PERFORM bury_order(OLD.shop, OLD.no, OLD.ver + 1, NEW.op);
	END IF;
	INSERT INTO history VALUES ('orders', NEW.shop || '/' || NEW.no, NEW.ver, NEW.op, NEW.txid, false, false, md5(NEW.blob));
	RETURN NEW;
END $$;
CREATE OR REPLACE FUNCTION orders_bury() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	PERFORM bury_order(OLD.shop, OLD.no, OLD.ver + 1, OLD.op);
	RETURN NULL;
END $$;
CREATE FUNCTION orders_bury_all() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	PERFORM bury_order(shop, no, ver + 1, op) FROM orders;
	RETURN NULL;
END $$;
CREATE TRIGGER zzz_bury_all BEFORE TRUNCATE ON orders FOR EACH STATEMENT EXECUTE FUNCTION orders_bury_all();
ALTER TABLE orders ENABLE ALWAYS TRIGGER zzz_bury_all;
`

// walIdentity makes Postgres send the old rows of orders, too.
const walIdentity = `ALTER TABLE orders REPLICA IDENTITY FULL`

// fill inserts the first rows, in one transaction.
const fill = `
INSERT INTO accounts (id, balance, op) SELECT g, $1, $2 FROM generate_series(1, $3) g`

// final returns the query for a relation's rows: key, txid, deleted, and the rest as JSON.
func (c Capture) final(relation string) string {
	blob := ""
	if c == WAL {
		blob = ", r.blob"
	}
	switch relation {
	case Accounts:
		return `SELECT id::text, txid, deleted, (SELECT row_to_json(d)::text FROM (SELECT r.id, r.balance, r.note, r.ver, r.op` + blob + `) d) FROM accounts r`
	case Orders:
		return `SELECT shop || '/' || no, txid, false, (SELECT row_to_json(d)::text FROM
			(SELECT r.shop, r.no, r.price, r.at, r.tags, r.attrs, r.raw, r.part, r.note, r.ver, r.op` + blob + `) d) FROM orders r`
	}
	return `SELECT shop || '/' || no, txid, deleted, (SELECT row_to_json(d)::text FROM
		(SELECT r.shop, r.no, r.price, r.at, r.tags, r.attrs, r.raw, r.part, r.note, r.ver, r.op) d) FROM orders_feed r`
}

// asDocuments are the settings with which Postgres writes values as they are in the bridge's documents.
var asDocuments = []string{
	"SET TimeZone = 'UTC'", "SET DateStyle = 'ISO, MDY'", "SET IntervalStyle = postgres", "SET bytea_output = hex", "SET extra_float_digits = 1",
}

// nasty are texts for keys and notes that are easily escaped wrongly.
var nasty = []string{
	"plain", "", " ", "a.b", "*", ">", "a b", "=", "=41", "per%cent", "ünï", "\u2028", "tab\tnew\nline", `quote"back\slash`, "🦊", "a/b",
	"null", "\x01\x7f", "<script>&amp;",
}
