-- The tables of the kill test and the functions that change them.
--
-- Every event leaves a row of truth in the same transaction: what a reader of the topics must see, written down by the
-- database itself. A rollback takes the truth along. Schema truth is not captured. Op m is the tombstone of a row that moved.
CREATE SCHEMA shop;
CREATE SCHEMA truth;

CREATE TABLE shop.bank (id bigint PRIMARY KEY, ver bigint NOT NULL, balance bigint NOT NULL);
CREATE TABLE shop.account (id bigint PRIMARY KEY, ver bigint NOT NULL, owner text, active boolean NOT NULL);
CREATE TABLE shop."order" (
    code text, region text, ver bigint NOT NULL, amount numeric(12,2), note text, PRIMARY KEY (region, code));
-- Bodies are stored out of line and uncompressed, so that their length alone says whether they are large.
CREATE TABLE shop.document (id text PRIMARY KEY, ver bigint NOT NULL, title text, body text);
ALTER TABLE shop.document ALTER body SET STORAGE EXTERNAL;
CREATE TABLE shop.journal (LIKE shop.document INCLUDING ALL);
ALTER TABLE shop.journal REPLICA IDENTITY FULL;

-- One row per key: its lock orders the writers of a key, its number is the version that the next event must show.
CREATE TABLE truth.version (tbl text, key text, ver bigint NOT NULL, PRIMARY KEY (tbl, key));
CREATE TABLE truth.change (
    id bigserial PRIMARY KEY, xid bigint NOT NULL DEFAULT pg_current_xact_id()::text::bigint, tbl text NOT NULL, op text NOT NULL,
    key json NOT NULL, ver bigint NOT NULL, row json, absent text);
CREATE INDEX ON truth.change (xid);

CREATE FUNCTION truth.bump(t text, k text) RETURNS bigint LANGUAGE sql AS $$
    INSERT INTO truth.version AS v VALUES (t, k, 1) ON CONFLICT (tbl, key) DO UPDATE SET ver = v.ver + 1 RETURNING ver $$;
CREATE FUNCTION truth.unbump(t text, k text) RETURNS void LANGUAGE sql AS $$
    UPDATE truth.version SET ver = ver - 1 WHERE (tbl, key) = (t, k) $$;
CREATE FUNCTION truth.note(t text, op text, key json, ver bigint, r json DEFAULT NULL, absent text DEFAULT NULL)
RETURNS void LANGUAGE sql AS $$
    INSERT INTO truth.change (tbl, op, key, ver, row, absent) VALUES (t, op, key, ver, r, absent) $$;

-- A transfer takes from one row and gives to another; its rows exist from the first transaction on.
CREATE FUNCTION truth.transfer(a bigint, b bigint, amount bigint) RETURNS void LANGUAGE plpgsql AS $$
DECLARE v bigint; s bigint; k bigint;
BEGIN
    FOREACH k IN ARRAY CASE WHEN a < b THEN ARRAY[a, b] ELSE ARRAY[b, a] END LOOP
        v := truth.bump('bank', k::text);
        UPDATE shop.bank SET ver = v, balance = balance + CASE k WHEN a THEN -amount ELSE amount END WHERE id = k RETURNING balance INTO s;
        PERFORM truth.note('bank', 'u', json_build_object('id', k), v, json_build_object('id', k, 'ver', v, 'balance', s));
    END LOOP;
END $$;
CREATE FUNCTION truth.open_bank(n bigint) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    FOR k IN 1..n LOOP
        INSERT INTO shop.bank VALUES (k, truth.bump('bank', k::text), 1000);
        PERFORM truth.note('bank', 'c', json_build_object('id', k), 1, json_build_object('id', k, 'ver', 1, 'balance', 1000));
    END LOOP;
END $$;

CREATE FUNCTION truth.put_account(k bigint, o text, a boolean) RETURNS void LANGUAGE plpgsql AS $$
DECLARE v bigint := truth.bump('account', k::text); op text := 'u';
BEGIN
    UPDATE shop.account SET ver = v, owner = o, active = a WHERE id = k;
    IF NOT FOUND THEN INSERT INTO shop.account (id, ver, owner, active) VALUES (k, v, o, a); op := 'c'; END IF;
    PERFORM truth.note('account', op, json_build_object('id', k), v, (SELECT row_to_json(t) FROM shop.account t WHERE id = k));
END $$;
CREATE FUNCTION truth.drop_account(k bigint) RETURNS void LANGUAGE plpgsql AS $$
DECLARE v bigint := truth.bump('account', k::text);
BEGIN
    DELETE FROM shop.account WHERE id = k;
    IF FOUND THEN PERFORM truth.note('account', 'd', json_build_object('id', k), v); ELSE PERFORM truth.unbump('account', k::text); END IF;
END $$;
CREATE FUNCTION truth.move_account(k bigint, k2 bigint) RETURNS void LANGUAGE plpgsql AS $$
DECLARE v bigint := truth.bump('account', k::text); w bigint := truth.bump('account', k2::text);
BEGIN
    UPDATE shop.account SET id = k2, ver = w WHERE id = k AND NOT EXISTS (SELECT FROM shop.account WHERE id = k2);
    IF FOUND THEN
        PERFORM truth.note('account', 'm', json_build_object('id', k), v);
        PERFORM truth.note('account', 'c', json_build_object('id', k2), w,
            (SELECT row_to_json(t) FROM shop.account t WHERE id = k2));
    ELSE
        PERFORM truth.unbump('account', k::text), truth.unbump('account', k2::text);
    END IF;
END $$;
-- Many accounts in two statements: a function per row would take longer than a daemon lives here.
CREATE FUNCTION truth.put_accounts(first bigint, n bigint, o text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO truth.version AS v SELECT 'account', k::text, 1 FROM generate_series(first, first + n - 1) k
        ON CONFLICT (tbl, key) DO UPDATE SET ver = v.ver + 1;
    WITH put AS (
        INSERT INTO shop.account AS a (id, ver, owner, active)
            SELECT k, v.ver, o, true FROM generate_series(first, first + n - 1) k
            JOIN truth.version v ON (v.tbl, v.key) = ('account', k::text) ORDER BY k
        ON CONFLICT (id) DO UPDATE SET ver = excluded.ver, owner = excluded.owner, active = excluded.active
        RETURNING a.id, a.ver, row_to_json(a) AS r, a.xmax = 0 AS made)
    INSERT INTO truth.change (tbl, op, key, ver, row)
        SELECT 'account', CASE WHEN made THEN 'c' ELSE 'u' END, json_build_object('id', id), ver, r FROM put;
END $$;
-- The truth of rows that COPY has just put there, in its order. Their keys are new, so their version is 1.
CREATE FUNCTION truth.copied(first bigint, n bigint) RETURNS void LANGUAGE sql AS $$
    INSERT INTO truth.version SELECT 'account', id::text, ver FROM shop.account WHERE id >= first AND id < first + n;
    INSERT INTO truth.change (tbl, op, key, ver, row) SELECT 'account', 'c', json_build_object('id', id), ver, row_to_json(t)
        FROM shop.account t WHERE id >= first AND id < first + n ORDER BY id $$;
-- One column of the accounts comes, changes its name and goes. The caller holds the table's lock.
CREATE FUNCTION truth.reshape(kind text, value text, new_name text, rename boolean) RETURNS void LANGUAGE plpgsql AS $$
DECLARE extra text;
BEGIN
    SELECT attname INTO extra FROM pg_attribute WHERE attrelid = 'shop.account'::regclass AND attnum > 0 AND NOT attisdropped
        AND attname NOT IN ('id', 'ver', 'owner', 'active');
    IF extra IS NULL THEN
        EXECUTE format('ALTER TABLE shop.account ADD COLUMN %I %s DEFAULT %L', new_name, kind, value);
    ELSIF rename AND extra <> new_name THEN
        EXECUTE format('ALTER TABLE shop.account RENAME COLUMN %I TO %I', extra, new_name);
    ELSE
        EXECUTE format('ALTER TABLE shop.account DROP COLUMN %I', extra);
    END IF;
END $$;

-- The key is in the order of the primary key, the row in the order of the table.
CREATE FUNCTION truth.put_order(g text, c text, m numeric, n text) RETURNS void LANGUAGE plpgsql AS $$
DECLARE k text := g || '/' || c; v bigint := truth.bump('order', k); op text := 'u'; r shop."order";
BEGIN
    UPDATE shop."order" SET ver = v, amount = m, note = n WHERE (region, code) = (g, c) RETURNING * INTO r;
    IF NOT FOUND THEN INSERT INTO shop."order" VALUES (c, g, v, m, n) RETURNING * INTO r; op := 'c'; END IF;
    PERFORM truth.note('order', op, json_build_object('region', g, 'code', c), v,
        json_build_object('code', c, 'region', g, 'ver', v, 'amount', r.amount::text, 'note', n));
END $$;
CREATE FUNCTION truth.drop_order(g text, c text) RETURNS void LANGUAGE plpgsql AS $$
DECLARE k text := g || '/' || c; v bigint := truth.bump('order', k);
BEGIN
    DELETE FROM shop."order" WHERE (region, code) = (g, c);
    IF FOUND THEN PERFORM truth.note('order', 'd', json_build_object('region', g, 'code', c), v);
    ELSE PERFORM truth.unbump('order', k); END IF;
END $$;

-- Table document or journal. A body of null leaves the stored one as it is: a large one is then absent from the event,
-- unless the replica identity is FULL and the old row fills it.
CREATE FUNCTION truth.put_text(t text, k text, h text, b text) RETURNS void LANGUAGE plpgsql AS $$
DECLARE v bigint := truth.bump(t, k); op text := 'u'; kept text; large boolean;
BEGIN
    IF b IS NULL THEN
        EXECUTE format('UPDATE shop.%I SET ver = $1, title = $2 WHERE id = $3 RETURNING body', t) INTO kept USING v, h, k;
    ELSE
        EXECUTE format('UPDATE shop.%I SET ver = $1, title = $2, body = $4 WHERE id = $3 RETURNING body', t) INTO kept USING v, h, k, b;
    END IF;
    IF kept IS NULL THEN
        EXECUTE format('INSERT INTO shop.%I VALUES ($3, $1, $2, coalesce($4, $2)) RETURNING body', t) INTO kept USING v, h, k, b;
        op := 'c';
    END IF;
    large := t = 'document' AND op = 'u' AND b IS NULL AND length(kept) > 2500;
    PERFORM truth.note(t, op, json_build_object('id', k), v, CASE WHEN large
        THEN json_build_object('id', k, 'ver', v, 'title', h)
        ELSE json_build_object('id', k, 'ver', v, 'title', h, 'body', kept) END, CASE WHEN large THEN 'body' END);
END $$;
CREATE FUNCTION truth.drop_text(t text, k text) RETURNS void LANGUAGE plpgsql AS $$
DECLARE v bigint := truth.bump(t, k); n bigint;
BEGIN
    EXECUTE format('DELETE FROM shop.%I WHERE id = $1', t) USING k;
    GET DIAGNOSTICS n = ROW_COUNT;
    IF n > 0 THEN PERFORM truth.note(t, 'd', json_build_object('id', k), v); ELSE PERFORM truth.unbump(t, k); END IF;
END $$;
CREATE FUNCTION truth.move_text(t text, k text, k2 text) RETURNS void LANGUAGE plpgsql AS $$
DECLARE v bigint := truth.bump(t, k); w bigint := truth.bump(t, k2); h text; kept text; large boolean;
BEGIN
    EXECUTE format('UPDATE shop.%I SET id = $2, ver = $3 WHERE id = $1 AND NOT EXISTS (SELECT FROM shop.%I WHERE id = $2)
        RETURNING title, body', t, t) INTO h, kept USING k, k2, w;
    IF kept IS NULL THEN
        PERFORM truth.unbump(t, k), truth.unbump(t, k2);
        RETURN;
    END IF;
    large := t = 'document' AND length(kept) > 2500;
    PERFORM truth.note(t, 'm', json_build_object('id', k), v);
    PERFORM truth.note(t, 'c', json_build_object('id', k2), w, CASE WHEN large
        THEN json_build_object('id', k2, 'ver', w, 'title', h)
        ELSE json_build_object('id', k2, 'ver', w, 'title', h, 'body', kept) END, CASE WHEN large THEN 'body' END);
END $$;
