-- Once for each of the two tables of texts, whose name stands for TEXTS. A body of null leaves the stored one as it is.
CREATE TRIGGER shop.TEXTS_c AFTER INSERT ON shop.TEXTS FOR EACH ROW
    INSERT INTO truth.changes (tx, tbl, op, k, ver, doc) VALUES (@tx, 'TEXTS', 'c', CONCAT('{"id":', JSON_QUOTE(NEW.id), '}'), NEW.ver,
        JSON_OBJECT('id', NEW.id, 'ver', NEW.ver, 'title', NEW.title, 'body', NEW.body))
//
CREATE TRIGGER shop.TEXTS_d AFTER DELETE ON shop.TEXTS FOR EACH ROW
    INSERT INTO truth.changes (tx, tbl, op, k, ver) VALUES (@tx, 'TEXTS', 'd', CONCAT('{"id":', JSON_QUOTE(OLD.id), '}'),
        (SELECT ver FROM truth.version WHERE tbl = 'TEXTS' AND k = OLD.id))
//
CREATE TRIGGER shop.TEXTS_u AFTER UPDATE ON shop.TEXTS FOR EACH ROW
BEGIN
    IF NEW.id <> OLD.id THEN
        INSERT INTO truth.changes (tx, tbl, op, k, ver) VALUES (@tx, 'TEXTS', 'm', CONCAT('{"id":', JSON_QUOTE(OLD.id), '}'),
            (SELECT ver FROM truth.version WHERE tbl = 'TEXTS' AND k = OLD.id));
    END IF;
    INSERT INTO truth.changes (tx, tbl, op, k, ver, doc) VALUES (@tx, 'TEXTS', IF(NEW.id <> OLD.id, 'c', 'u'),
        CONCAT('{"id":', JSON_QUOTE(NEW.id), '}'), NEW.ver,
        JSON_OBJECT('id', NEW.id, 'ver', NEW.ver, 'title', NEW.title, 'body', NEW.body));
END
//
CREATE PROCEDURE truth.put_TEXTS(kk varchar(100), h text, b mediumtext)
BEGIN
    DECLARE v bigint;
    CALL truth.bump('TEXTS', kk, v);
    UPDATE shop.TEXTS SET ver = v, title = h, body = COALESCE(b, body) WHERE id = kk;
    IF ROW_COUNT() = 0 THEN INSERT INTO shop.TEXTS VALUES (kk, v, h, COALESCE(b, h)); END IF;
END
//
CREATE PROCEDURE truth.drop_TEXTS(kk varchar(100))
BEGIN
    DECLARE v bigint;
    CALL truth.bump('TEXTS', kk, v);
    DELETE FROM shop.TEXTS WHERE id = kk;
    IF ROW_COUNT() = 0 THEN CALL truth.unbump('TEXTS', kk); END IF;
END
//
CREATE PROCEDURE truth.move_TEXTS(kk varchar(100), k2 varchar(100))
BEGIN
    DECLARE v, w, n bigint;
    CALL truth.bump('TEXTS', kk, v);
    CALL truth.bump('TEXTS', k2, w);
    SELECT count(*) INTO n FROM shop.TEXTS WHERE id = k2 FOR UPDATE;
    UPDATE shop.TEXTS SET id = k2, ver = w WHERE id = kk AND n = 0;
    IF ROW_COUNT() = 0 THEN
        CALL truth.unbump('TEXTS', kk);
        CALL truth.unbump('TEXTS', k2);
    END IF;
END
