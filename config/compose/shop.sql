-- The database of docker-compose.yml: two tables, a role for Headwater with no more than it needs, and a shop that trades.
CREATE TABLE customers (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name text NOT NULL, since timestamptz NOT NULL DEFAULT now());
CREATE TABLE orders (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    customer bigint NOT NULL REFERENCES customers,
    status text NOT NULL DEFAULT 'new',
    total numeric(12, 2) NOT NULL,
    at timestamptz NOT NULL DEFAULT now()
);

CREATE ROLE headwater LOGIN REPLICATION PASSWORD 'headwater-of-the-demo';
GRANT SELECT ON customers, orders TO headwater;
CREATE PUBLICATION headwater_shop FOR TABLE customers, orders;

-- One day at the shop: somebody new, two orders, one paid, an old one gone.
CREATE FUNCTION trade() RETURNS void LANGUAGE sql AS $$
    WITH somebody AS (INSERT INTO customers (name) VALUES ('customer ' || substr(md5(random()::text), 1, 6)) RETURNING id)
    INSERT INTO orders (customer, total) SELECT id, (random() * 100)::numeric(12, 2) FROM somebody, generate_series(1, 2);
    UPDATE orders SET status = 'paid' WHERE id = (SELECT max(id) FROM orders WHERE status = 'new');
    DELETE FROM orders WHERE id = (SELECT min(id) FROM orders) AND (SELECT count(*) FROM orders) > 100;
$$;
