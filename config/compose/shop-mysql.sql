-- The MySQL of docker-compose.yml: two tables, a user for Headwater with no more than it needs, and a shop that trades every second.
CREATE TABLE customers (id bigint AUTO_INCREMENT PRIMARY KEY, name text NOT NULL, since timestamp NOT NULL DEFAULT now());
CREATE TABLE orders (
    id bigint AUTO_INCREMENT PRIMARY KEY,
    customer bigint NOT NULL,
    status varchar(16) NOT NULL DEFAULT 'new',
    total decimal(12, 2) NOT NULL,
    at timestamp(6) NOT NULL DEFAULT now(6),
    FOREIGN KEY (customer) REFERENCES customers (id)
);

CREATE USER headwater@'%' IDENTIFIED BY 'headwater-of-the-demo';
GRANT REPLICATION SLAVE, REPLICATION CLIENT ON *.* TO headwater@'%';
GRANT SELECT ON shop.* TO headwater@'%';

-- Somebody new, two orders, one paid, an old one gone.
DELIMITER //
CREATE EVENT trade ON SCHEDULE EVERY 1 SECOND DO
BEGIN
    INSERT INTO customers (name) VALUES (concat('customer ', left(md5(rand()), 6)));
    INSERT INTO orders (customer, total) VALUES (last_insert_id(), round(rand() * 100, 2)), (last_insert_id(), round(rand() * 100, 2));
    UPDATE orders SET status = 'paid' WHERE status = 'new' ORDER BY id DESC LIMIT 1;
    IF (SELECT count(*) FROM orders) > 100 THEN
        DELETE FROM orders ORDER BY id LIMIT 1;
    END IF;
END//
DELIMITER ;
