//! Tables that change around a running connector: what it goes on through, what it names, and what stops it.

use crate::support::{daemon::Home, postgres::Postgres};

#[test]
fn a_table_that_newly_matches_a_glob_is_named_in_the_status() {
    let server = Postgres::shared();
    let database = server.database();
    database.sql("CREATE TABLE public.orders_old (id int PRIMARY KEY)");
    let home = Home::new();
    home.shop(&database.url(), "\"public.orders_*\"", "");
    let mut daemon = home.start();
    let connector = daemon.wait_state("shop", "streaming");
    assert!(connector.get("findings").is_none(), "{connector}");
    database.sql("CREATE TABLE public.orders_new (id int PRIMARY KEY); CREATE TABLE public.others (id int PRIMARY KEY)");
    let connector = daemon.wait_for("shop", "a finding", |connector| connector["findings"].is_array());
    assert_eq!(connector["findings"].as_array().map(Vec::len), Some(1), "{connector}");
    let text = home.run(&["status"]).stdout;
    assert!(text.contains("HW2057") && text.contains("public.orders_new") && text.contains("headwater restart"), "{text}");
    home.run(&["restart", "shop"]).expect_code(0);
    daemon.wait_state("shop", "streaming");
    database.sql("INSERT INTO public.orders_new VALUES (1)");
    let connector = daemon.wait_caught_up("shop");
    assert!(connector.get("findings").is_none(), "{connector}");
    assert_eq!(home.tail("shop.orders_new").len(), 1);
    assert_eq!(daemon.terminate(), Some(0));
}

#[test]
fn a_changed_key_stops_before_a_row_is_there_twice() {
    let server = Postgres::shared();
    let database = server.database();
    let home = Home::of_orders(&database);
    database.sql("ALTER TABLE public.orders ALTER note SET NOT NULL");
    let mut daemon = home.start();
    daemon.wait_state("shop", "streaming");
    database.sql("INSERT INTO public.orders VALUES (1, 'a')");
    daemon.wait_caught_up("shop");
    database.sql("ALTER TABLE public.orders DROP CONSTRAINT orders_pkey; ALTER TABLE public.orders ADD PRIMARY KEY (note)");
    // The log still carries the old key's columns, or nothing could be mended later.
    database.sql("CREATE UNIQUE INDEX orders_id ON public.orders (id); ALTER TABLE public.orders REPLICA IDENTITY FULL");
    database.sql("INSERT INTO public.orders VALUES (2, 'b')");
    assert_eq!(daemon.exit_code(), Some(2));
    // It stays stopped when it is started again: what was published is remembered, not only what was seen.
    let daemon = home.start();
    assert_eq!(daemon.exit_code(), Some(2));
    let said = std::fs::read_to_string(home.path("stderr")).expect("its words");
    assert!(said.contains("HW1157") && said.contains("was (id) and is (note)"), "{said}");
    // The old key, set in the config, goes on where it stopped.
    let file = std::fs::read_to_string(home.path("connectors/shop.yaml")).expect("the file");
    home.write("connectors/shop.yaml", &format!("{file}    events: {{ tables: {{ public.orders: {{ key: [id] }} }} }}\n"));
    let mut daemon = home.start();
    daemon.wait_caught_up("shop");
    assert_eq!(daemon.terminate(), Some(0));
    let keys: Vec<String> = home.tail("shop.orders").into_iter().map(|record| record.key).collect();
    assert_eq!(keys, [r#"{"id":1}"#, r#"{"id":2}"#]);
}

/// Without a replica identity the server refuses updates and deletes, and the log tells of new rows without a key.
#[test]
fn rows_that_were_inserted_while_the_table_had_no_identity_could_never_be_passed() {
    let server = Postgres::shared();
    let database = server.database();
    let home = Home::of_orders(&database);
    let mut daemon = home.start();
    daemon.wait_state("shop", "streaming");
    database.sql("INSERT INTO public.orders VALUES (1, 'a')");
    daemon.wait_caught_up("shop");
    database.sql("ALTER TABLE public.orders REPLICA IDENTITY NOTHING; INSERT INTO public.orders VALUES (2, 'b')");
    assert!(
        database.client().batch_execute("UPDATE public.orders SET note = 'c'").is_err(),
        "the server refuses the application"
    );
    daemon.wait_caught_up("shop");
    assert_eq!(daemon.terminate(), Some(0));
    let check = home.run(&["check"]);
    assert!(check.said().contains("HW2012") && check.said().contains("REPLICA IDENTITY DEFAULT;"), "{}", check.said());
    database.sql("INSERT INTO public.orders VALUES (3, 'b'); ALTER TABLE public.orders REPLICA IDENTITY DEFAULT");
    database.sql("UPDATE public.orders SET note = 'c' WHERE id = 1");
    // The same without the primary key, which comes back before anybody looks.
    database.sql("ALTER TABLE public.orders DROP CONSTRAINT orders_pkey; INSERT INTO public.orders VALUES (4, 'd')");
    database.sql("ALTER TABLE public.orders ADD PRIMARY KEY (id); DELETE FROM public.orders WHERE id = 4");
    let mut daemon = home.start();
    daemon.wait_caught_up("shop");
    // And while somebody looks, until there is one again.
    database.sql("ALTER TABLE public.orders DROP CONSTRAINT orders_pkey; INSERT INTO public.orders VALUES (5, 'e')");
    assert_eq!(daemon.exit_code(), Some(2));
    let said = std::fs::read_to_string(home.path("stderr")).expect("its words");
    assert!(said.contains("HW2012") && said.contains("ADD PRIMARY KEY (...);"), "{said}");
    database.sql("ALTER TABLE public.orders ADD PRIMARY KEY (id)");
    let mut daemon = home.start();
    daemon.wait_caught_up("shop");
    assert_eq!(daemon.terminate(), Some(0));
    let told: Vec<String> = home.tail("shop.orders").iter().map(|record| format!("{} {}", record.op(), record.key)).collect();
    let wanted = [("c", 1), ("c", 2), ("c", 3), ("u", 1), ("c", 4), ("d", 4), ("c", 5)];
    assert_eq!(told, wanted.map(|(op, id)| format!("{op} {{\"id\":{id}}}")));
}
