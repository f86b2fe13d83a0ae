-- The tables of the kill test and the procedures that change them, as in `postgres.sql`. Statements end at a line `//`.
--
-- Every row that the server changes leaves a row of truth by a trigger, in the same transaction. @tx is the transaction's number, by
-- which `truth.began` and the server's own listing of its binlog tell the order of the commits. No trigger knows the column of the
-- accounts that comes and goes: it always has its default, which the listing tells too.
CREATE DATABASE shop CHARACTER SET utf8mb4 COLLATE utf8mb4_bin
//
CREATE DATABASE truth CHARACTER SET utf8mb4 COLLATE utf8mb4_bin
//
CREATE TABLE shop.bank (id bigint PRIMARY KEY, ver bigint NOT NULL, balance bigint NOT NULL)
//
CREATE TABLE shop.account (id bigint PRIMARY KEY, ver bigint NOT NULL, owner text, active boolean NOT NULL)
//
CREATE TABLE shop.`order` (
    code varchar(60), region varchar(60), ver bigint NOT NULL, amount decimal(12,2), note text, PRIMARY KEY (region, code))
//
CREATE TABLE shop.document (id varchar(100) PRIMARY KEY, ver bigint NOT NULL, title text, body mediumtext)
//
CREATE TABLE shop.journal LIKE shop.document
//
-- One row per key: its lock orders the writers of a key, its number is the version that the next event must show.
CREATE TABLE truth.version (tbl varchar(10), k varchar(130), ver bigint NOT NULL, PRIMARY KEY (tbl, k))
//
CREATE TABLE truth.began (tx bigint PRIMARY KEY)
//
CREATE TABLE truth.number (n bigint PRIMARY KEY)
//
CREATE TABLE truth.changes (
    id bigint AUTO_INCREMENT PRIMARY KEY, tx bigint NOT NULL, tbl varchar(10) NOT NULL, op char(1) NOT NULL, k text NOT NULL,
    ver bigint NOT NULL, doc longtext, KEY (tx))
//
CREATE PROCEDURE truth.fill_numbers()
BEGIN
    DECLARE n int DEFAULT 1;
    INSERT INTO truth.number VALUES (0);
    WHILE n < 20000 DO
        INSERT INTO truth.number SELECT number.n + n FROM truth.number;
        SET n = n * 2;
    END WHILE;
END
//
CALL truth.fill_numbers()
//
CREATE PROCEDURE truth.bump(t varchar(10), kk varchar(130), OUT v bigint)
BEGIN
    INSERT INTO truth.version VALUES (t, kk, 1) ON DUPLICATE KEY UPDATE ver = ver + 1;
    SELECT ver INTO v FROM truth.version WHERE tbl = t AND k = kk;
END
//
CREATE PROCEDURE truth.unbump(t varchar(10), kk varchar(130))
    UPDATE truth.version SET ver = ver - 1 WHERE tbl = t AND k = kk
//
CREATE TRIGGER shop.bank_c AFTER INSERT ON shop.bank FOR EACH ROW
    INSERT INTO truth.changes (tx, tbl, op, k, ver, doc) VALUES (@tx, 'bank', 'c', CONCAT('{"id":', NEW.id, '}'), NEW.ver,
        JSON_OBJECT('id', NEW.id, 'ver', NEW.ver, 'balance', NEW.balance))
//
CREATE TRIGGER shop.bank_u AFTER UPDATE ON shop.bank FOR EACH ROW
    INSERT INTO truth.changes (tx, tbl, op, k, ver, doc) VALUES (@tx, 'bank', 'u', CONCAT('{"id":', NEW.id, '}'), NEW.ver,
        JSON_OBJECT('id', NEW.id, 'ver', NEW.ver, 'balance', NEW.balance))
//
CREATE TRIGGER shop.account_c AFTER INSERT ON shop.account FOR EACH ROW
    INSERT INTO truth.changes (tx, tbl, op, k, ver, doc) VALUES (@tx, 'account', 'c', CONCAT('{"id":', NEW.id, '}'), NEW.ver,
        JSON_OBJECT('id', NEW.id, 'ver', NEW.ver, 'owner', NEW.owner, 'active', NEW.active))
//
CREATE TRIGGER shop.account_d AFTER DELETE ON shop.account FOR EACH ROW
    INSERT INTO truth.changes (tx, tbl, op, k, ver) VALUES (@tx, 'account', 'd', CONCAT('{"id":', OLD.id, '}'),
        (SELECT ver FROM truth.version WHERE tbl = 'account' AND k = CAST(OLD.id AS CHAR)))
//
CREATE TRIGGER shop.account_u AFTER UPDATE ON shop.account FOR EACH ROW
BEGIN
    IF NEW.id <> OLD.id THEN
        INSERT INTO truth.changes (tx, tbl, op, k, ver) VALUES (@tx, 'account', 'm', CONCAT('{"id":', OLD.id, '}'),
            (SELECT ver FROM truth.version WHERE tbl = 'account' AND k = CAST(OLD.id AS CHAR)));
    END IF;
    INSERT INTO truth.changes (tx, tbl, op, k, ver, doc) VALUES (@tx, 'account', IF(NEW.id <> OLD.id, 'c', 'u'),
        CONCAT('{"id":', NEW.id, '}'), NEW.ver,
        JSON_OBJECT('id', NEW.id, 'ver', NEW.ver, 'owner', NEW.owner, 'active', NEW.active));
END
//
CREATE TRIGGER shop.order_c AFTER INSERT ON shop.`order` FOR EACH ROW
    INSERT INTO truth.changes (tx, tbl, op, k, ver, doc) VALUES (@tx, 'order', 'c',
        CONCAT('{"region":', JSON_QUOTE(NEW.region), ',"code":', JSON_QUOTE(NEW.code), '}'), NEW.ver,
        JSON_OBJECT('code', NEW.code, 'region', NEW.region, 'ver', NEW.ver, 'amount', CAST(NEW.amount AS CHAR), 'note', NEW.note))
//
CREATE TRIGGER shop.order_u AFTER UPDATE ON shop.`order` FOR EACH ROW
    INSERT INTO truth.changes (tx, tbl, op, k, ver, doc) VALUES (@tx, 'order', 'u',
        CONCAT('{"region":', JSON_QUOTE(NEW.region), ',"code":', JSON_QUOTE(NEW.code), '}'), NEW.ver,
        JSON_OBJECT('code', NEW.code, 'region', NEW.region, 'ver', NEW.ver, 'amount', CAST(NEW.amount AS CHAR), 'note', NEW.note))
//
CREATE TRIGGER shop.order_d AFTER DELETE ON shop.`order` FOR EACH ROW
    INSERT INTO truth.changes (tx, tbl, op, k, ver) VALUES (@tx, 'order', 'd',
        CONCAT('{"region":', JSON_QUOTE(OLD.region), ',"code":', JSON_QUOTE(OLD.code), '}'),
        (SELECT ver FROM truth.version WHERE tbl = 'order' AND k = CONCAT(OLD.region, '/', OLD.code)))
//
CREATE PROCEDURE truth.transfer(a bigint, b bigint, amount bigint)
BEGIN
    DECLARE v bigint;
    DECLARE k bigint DEFAULT LEAST(a, b);
    CALL truth.bump('bank', k, v);
    UPDATE shop.bank SET ver = v, balance = balance + IF(k = a, -amount, amount) WHERE id = k;
    SET k = GREATEST(a, b);
    CALL truth.bump('bank', k, v);
    UPDATE shop.bank SET ver = v, balance = balance + IF(k = a, -amount, amount) WHERE id = k;
END
//
CREATE PROCEDURE truth.open_bank(n bigint)
BEGIN
    DECLARE v bigint;
    DECLARE k bigint DEFAULT 1;
    WHILE k <= n DO
        CALL truth.bump('bank', k, v);
        INSERT INTO shop.bank VALUES (k, v, 1000);
        SET k = k + 1;
    END WHILE;
END
//
CREATE PROCEDURE truth.put_account(kk bigint, o text, a boolean)
BEGIN
    DECLARE v bigint;
    CALL truth.bump('account', kk, v);
    UPDATE shop.account SET ver = v, owner = o, active = a WHERE id = kk;
    IF ROW_COUNT() = 0 THEN INSERT INTO shop.account (id, ver, owner, active) VALUES (kk, v, o, a); END IF;
END
//
CREATE PROCEDURE truth.drop_account(kk bigint)
BEGIN
    DECLARE v bigint;
    CALL truth.bump('account', kk, v);
    DELETE FROM shop.account WHERE id = kk;
    IF ROW_COUNT() = 0 THEN CALL truth.unbump('account', kk); END IF;
END
//
CREATE PROCEDURE truth.move_account(kk bigint, k2 bigint)
BEGIN
    DECLARE v, w, n bigint;
    CALL truth.bump('account', kk, v);
    CALL truth.bump('account', k2, w);
    SELECT count(*) INTO n FROM shop.account WHERE id = k2 FOR UPDATE;
    UPDATE shop.account SET id = k2, ver = w WHERE id = kk AND n = 0;
    IF ROW_COUNT() = 0 THEN
        CALL truth.unbump('account', kk);
        CALL truth.unbump('account', k2);
    END IF;
END
//
-- Many accounts in two statements: a procedure per row would take longer than a daemon lives here.
CREATE PROCEDURE truth.put_accounts(first bigint, rows_wanted bigint, o text)
BEGIN
    INSERT INTO truth.version SELECT 'account', CAST(first + n AS CHAR), 1 FROM truth.number WHERE n < rows_wanted ORDER BY n
        ON DUPLICATE KEY UPDATE ver = version.ver + 1;
    INSERT INTO shop.account (id, ver, owner, active)
        SELECT first + n, v.ver, o, 1 FROM truth.number STRAIGHT_JOIN truth.version v ON v.tbl = 'account' AND v.k = CAST(first + n AS CHAR)
        WHERE n < rows_wanted ORDER BY n
        ON DUPLICATE KEY UPDATE ver = VALUES(ver), owner = VALUES(owner), active = VALUES(active);
END
//
-- Rows have just been inserted there, with keys that are new, so their version is 1.
CREATE PROCEDURE truth.copied(first bigint, n bigint)
    INSERT INTO truth.version SELECT 'account', CAST(id AS CHAR), ver FROM shop.account WHERE id >= first AND id < first + n
//
CREATE PROCEDURE truth.put_order(g varchar(60), c varchar(60), m decimal(12,2), nn text)
BEGIN
    DECLARE v bigint;
    CALL truth.bump('order', CONCAT(g, '/', c), v);
    UPDATE shop.`order` SET ver = v, amount = m, note = nn WHERE region = g AND code = c;
    IF ROW_COUNT() = 0 THEN INSERT INTO shop.`order` VALUES (c, g, v, m, nn); END IF;
END
//
CREATE PROCEDURE truth.drop_order(g varchar(60), c varchar(60))
BEGIN
    DECLARE v bigint;
    CALL truth.bump('order', CONCAT(g, '/', c), v);
    DELETE FROM shop.`order` WHERE region = g AND code = c;
    IF ROW_COUNT() = 0 THEN CALL truth.unbump('order', CONCAT(g, '/', c)); END IF;
END
//
CREATE PROCEDURE truth.put_text(t varchar(10), kk varchar(100), h text, b mediumtext)
    IF t = 'document' THEN CALL truth.put_document(kk, h, b); ELSE CALL truth.put_journal(kk, h, b); END IF
//
CREATE PROCEDURE truth.drop_text(t varchar(10), kk varchar(100))
    IF t = 'document' THEN CALL truth.drop_document(kk); ELSE CALL truth.drop_journal(kk); END IF
//
CREATE PROCEDURE truth.move_text(t varchar(10), kk varchar(100), k2 varchar(100))
    IF t = 'document' THEN CALL truth.move_document(kk, k2); ELSE CALL truth.move_journal(kk, k2); END IF
