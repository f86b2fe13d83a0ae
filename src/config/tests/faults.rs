//! One test per class of fault.

use super::{Files, fault, faults, shop, shop_with};

#[test]
fn an_unknown_key_names_the_closest() {
    assert_eq!(
        fault(&shop_with("    evnts: {}\n")),
        "HW1002 headwater.yaml:7:5 connectors.shop.evnts: unknown option evnts -> Did you mean events? Write events."
    );
    assert_eq!(
        fault(&shop("      tables: [ public.orders ]\n      passwrod: { env: X }\n")),
        "HW1002 headwater.yaml:7:7 connectors.shop.source.passwrod: unknown option passwrod -> Did you mean password? Write password."
    );
    let far = fault(&shop_with("    commit: { quickly: 1 }\n"));
    assert!(far.starts_with("HW1002 headwater.yaml:7:15 connectors.shop.commit.quickly:"), "{far}");
    assert!(far.ends_with("Use one of max_bytes, max_events or linger_ms."), "{far}");
}

#[test]
fn a_wrong_type_says_what_is_expected_and_found() {
    assert_eq!(
        fault(&shop("      tables: { a: b }\n")),
        "HW1003 headwater.yaml:6:15 connectors.shop.source.tables: expected a list or a text, found a map -> \
         Put the items into brackets: [ one, two ]."
    );
    assert_eq!(
        fault(&shop("      tables: [ public.orders, 7 ]\n")),
        "HW1003 headwater.yaml:6:32 connectors.shop.source.tables[1]: expected a text, found a number -> Put the value into quotes."
    );
    assert_eq!(
        fault(&shop_with("    events: { partitions: many }\n")),
        "HW1003 headwater.yaml:7:27 connectors.shop.events.partitions: expected a whole number, found a text -> \
         Write a whole number here."
    );
    assert_eq!(
        fault("connectors: [ one ]\n"),
        "HW1003 headwater.yaml:1:13 connectors: expected a map, found a list -> Write a map here."
    );
    assert_eq!(
        fault("- one\n"),
        "HW1003 headwater.yaml:1:1: expected options, found a list -> Begin with `connectors:` or another option."
    );
}

#[test]
fn a_number_out_of_range_names_the_range() {
    assert_eq!(
        fault(&shop_with("    events: { partitions: 0 }\n")),
        "HW1006 headwater.yaml:7:27 connectors.shop.events.partitions: 0 is out of range -> Use a number from 1 to 10000."
    );
    assert_eq!(
        fault(&format!("log: {{ kind: embedded, path: d, retention_hours: 0 }}\n{}", shop_with(""))),
        "HW1006 headwater.yaml:1:50 log.retention_hours: 0 is out of range -> Use a number of at least 1."
    );
}

#[test]
fn what_is_required_and_missing_is_named_where_it_belongs() {
    let found = faults("connectors:\n  shop:\n    source: { kind: postgres }\n");
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found[0].starts_with("HW1004 headwater.yaml:3:13 connectors.shop.source.url: option url is missing -> Add `url:`"));
    assert!(found[1].starts_with("HW1004 headwater.yaml:3:13 connectors.shop.source.tables: option tables is missing -> Add"));
    assert_eq!(
        fault("connectors:\n  shop:\n    source: { url: x }\n"),
        "HW1004 headwater.yaml:3:13 connectors.shop.source.kind: option kind is missing -> \
         Add `kind:` with one of mysql, mariadb, postgres or postgresql."
    );
    assert!(
        fault("connectors:\n  shop: {}\n")
            .starts_with("HW1009 headwater.yaml:2:3 connectors.shop.source: the connector has no source -> Add `source:`")
    );
    let log = fault(&format!("log: {{ kind: kafka }}\n{}", shop_with("")));
    assert!(log.starts_with("HW1004 headwater.yaml:1:6 log.bootstrap_servers: option bootstrap_servers is missing"), "{log}");
}

#[test]
fn a_word_that_is_no_choice_names_the_choices() {
    assert_eq!(
        fault(&shop("      tables: [ public.orders ]\n      on_truncate: stopp\n")),
        "HW1005 headwater.yaml:7:20 connectors.shop.source.on_truncate: \"stopp\" is not one of stop or event -> \
         Did you mean stop? Write stop."
    );
    assert_eq!(
        fault(&shop_with("    events:\n      on_data_error: ignore\n")),
        "HW1005 headwater.yaml:8:22 connectors.shop.events.on_data_error: \"ignore\" is not one of stop or dead_letter -> \
         Use one of stop or dead_letter."
    );
}

#[test]
fn a_key_that_stands_twice_names_both_places() {
    assert_eq!(
        fault(&shop("      tables: [ public.orders ]\n      url: postgres://other@localhost/d\n")),
        "HW1007 headwater.yaml:7:7 connectors.shop.source.url: connectors.shop.source.url is given twice, first at \
         headwater.yaml:5:7 -> Remove or rename one of the two."
    );
}

#[test]
fn a_connector_in_two_files_names_both_places() {
    let shop = shop_with("");
    let files = Files::new("include: [ c/*.yaml ]\n").with("c/a.yaml", &shop).with("c/b.yaml", &format!("\n{shop}"));
    assert_eq!(
        files.faults(&[]),
        ["HW1007 c/b.yaml:3:3 connectors.shop: connectors.shop is given twice, first at c/a.yaml:2:3 -> \
          Remove or rename one of the two."]
    );
}

#[test]
fn a_file_that_two_patterns_match_is_read_once() {
    let files = Files::new("include: [ c/*.yaml, c/a.* ]\n").with("c/a.yaml", &shop_with(""));
    assert_eq!(files.plan(&[]).sources.len(), 1);
}

#[test]
fn an_unknown_kind_names_the_closest() {
    assert_eq!(
        fault("connectors:\n  shop:\n    source: { kind: postgress, url: x }\n"),
        "HW1008 headwater.yaml:3:21 connectors.shop.source.kind: kind \"postgress\" is not one of mysql, mariadb, postgres or postgresql -> \
         Did you mean postgres? Write postgres."
    );
    let log = fault(&format!("log: {{ kind: kafak }}\n{}", shop_with("")));
    assert!(log.starts_with("HW1008 headwater.yaml:1:14 log.kind: kind \"kafak\" is not one of embedded or kafka"), "{log}");
}

#[test]
fn a_sink_is_refused_in_its_own_words() {
    let found = fault("connectors:\n  dw:\n    sink: { kind: postgres }\n");
    assert!(found.starts_with("HW1009 headwater.yaml:3:5 connectors.dw.sink: this version has no kinds of sinks"), "{found}");
}

#[test]
fn a_url_that_the_connector_refuses_has_its_place() {
    let with_url =
        |url: &str| fault(&format!("connectors:\n  shop:\n    source: {{ kind: postgres, tables: a.b, url: \"{url}\" }}\n"));
    assert_eq!(
        with_url("mysql://u@localhost/d"),
        "HW2007 headwater.yaml:3:49 connectors.shop.source.url: the url does not begin with postgres:// -> \
         Write it as postgres://USER@HOST:PORT/DATABASE."
    );
    let parameter = with_url("postgres://u@localhost/d?sslmod=require");
    assert!(parameter.contains("3:49 connectors.shop.source.url: unknown url parameter \"sslmod\""), "{parameter}");
    assert_eq!(
        fault(&shop("      tables: [ public.orders, orders ]\n")),
        "HW2007 headwater.yaml:6:32 connectors.shop.source.tables[1]: \"orders\" is not schema.table -> \
         Write it as schema.table, for example public.orders."
    );
}

#[test]
fn empty_tables_are_refused_once() {
    assert!(
        fault(&shop("      tables: []\n"))
            .starts_with("HW2007 headwater.yaml:6:15 connectors.shop.source.tables: no table is named")
    );
}

#[test]
fn an_include_pattern_must_match() {
    let found = fault("include: [ c/*.yaml ]\n");
    assert!(found.starts_with("HW1010 headwater.yaml:1:12 include[0]: no file matches c/*.yaml -> Create the file"), "{found}");
    let found = fault("include: [ \"c/***\" ]\n");
    assert!(found.starts_with("HW1006 headwater.yaml:1:12 include[0]: not a valid pattern"), "{found}");
}

#[test]
fn an_included_file_holds_connectors_only() {
    let files = Files::new("include: [ more.yaml ]\n")
        .with("more.yaml", &format!("log: {{ kind: embedded, path: d }}\n{}", shop_with("")));
    assert_eq!(
        files.faults(&[]),
        ["HW1011 more.yaml:1:1 log: log cannot be set in an included file -> \
          Move it to the main config file; included files hold `connectors` only."]
    );
}

#[test]
fn a_syntax_error_has_its_place() {
    for (text, place) in [
        ("connectors:\n  shop: [ a\nhttp: {}\n", "3:5: syntax error: illegal placement of ':'"),
        ("http: {}\nconnectors: {\n", "2:13: syntax error: unclosed bracket"),
        ("connectors:\n\tshop: 1\n", "2:2: syntax error: tabs disallowed"),
        ("a: 1\n b: 2\n", "2:3: syntax error: mapping values"),
        ("a: 1\nb: *x\n", "2:4: syntax error: alias references unknown anchor"),
        ("a: 1\n---\nb: 1\n", "3:1: syntax error: multiple YAML documents detected ->"),
    ] {
        let found = fault(text);
        assert!(found.starts_with(&format!("HW1001 headwater.yaml:{place}")), "{found}");
    }
    for (name, text, place) in [
        ("headwater.toml", "[log]\nkind = \n", "2:"),
        ("headwater.toml", "[log]\nkind = 'a'\nkind = 'b'\n", "3:1: syntax error: duplicate key"),
        ("headwater.json", "{\n \"log\": nul }\n", "2:12: syntax error: expected ident"),
    ] {
        let files = Files::empty().with(name, text);
        let found = files.rendered(&files.load_file(name, &[]).err().unwrap());
        assert!(found[0].starts_with(&format!("HW1001 {name}:{place}")), "{found:?}");
    }
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let files = Files::empty();
    let found = files.faults(&[]);
    assert!(found[0].starts_with("HW1000 headwater.yaml: config file cannot be read: No such file"), "{found:?}");
    assert!(found[0].contains("-c FILE"), "{found:?}");
    let files = Files::new("include: [ latin.yaml ]\n");
    std::fs::write(files.path("latin.yaml"), b"connectors: \xff\n").unwrap();
    let found = files.faults(&[]);
    assert!(found[0].starts_with("HW1000 latin.yaml") && !found[0].contains("-c FILE"), "{found:?}");
    let files = Files::empty().with("headwater.ini", "x");
    let found = files.rendered(&files.load_file("headwater.ini", &[]).err().unwrap());
    assert!(found[0].contains("format is not known") && found[0].contains(".yaml, .yml, .toml or .json"), "{found:?}");
}

#[test]
fn a_topic_template_with_an_unknown_part_names_the_closest() {
    assert_eq!(
        fault(&shop_with("    events:\n      topic: \"{connector}.{entitty}\"\n")),
        "HW1015 headwater.yaml:8:14 connectors.shop.events.topic: template \"{connector}.{entitty}\" has an unknown part \
         {entitty} -> Did you mean {entity}? Write {entity}."
    );
    let version = fault(&shop_with("    events:\n      topic: \"{entity}.{version}\"\n"));
    assert!(version.contains("8:14") && version.contains("events.version is not set"), "{version}");
    let brace = fault(&shop_with("    events:\n      tables: { public.orders: { topic: \"{entity\" } }\n"));
    assert!(brace.starts_with("HW1015 headwater.yaml:8:41 connectors.shop.events.tables.public.orders.topic: "), "{brace}");
    let letters = fault(&shop_with("    events:\n      topic: \"{entity}/x\"\n"));
    assert!(letters.starts_with("HW1015 headwater.yaml:8:14"), "{letters}");
}

#[test]
fn a_connector_name_that_is_not_allowed_is_blamed_once() {
    let main = shop_with("").replace("  shop:", "  My Shop:");
    let found = fault(&main);
    assert!(
        found.starts_with("HW1014 headwater.yaml:2:3 connectors.My Shop: connector name \"My Shop\" is not allowed"),
        "{found}"
    );
}

#[test]
fn columns_that_contradict_each_other_are_refused() {
    let rule = |rule: &str| faults(&shop_with(&format!("    events:\n      tables:\n        public.orders: {rule}\n")));
    assert_eq!(
        rule("{ include: [ id, a ], exclude: [ b ] }"),
        [
            "HW1016 headwater.yaml:9:55 connectors.shop.events.tables.public.orders.exclude: include and exclude are both given -> \
          Keep one of the two."
        ]
    );
    assert!(rule("{ key: [] }")[0].contains("9:31 connectors.shop.events.tables.public.orders.key: key names no column"));
    assert!(rule("{ key: [ id ], exclude: [ a, id ] }")[0].contains("9:53"));
    assert!(rule("{ key: [ id ], include: [ a ] }")[0].contains("key column id is not included"));
    assert!(rule("{ key: [ id, id ] }")[0].contains("column id is named twice"));
    let found = fault(&shop_with("    events:\n      tables:\n        orders: {}\n"));
    assert!(found.starts_with("HW1014 headwater.yaml:9:9 connectors.shop.events.tables.orders: "), "{found}");
}

#[test]
fn http_does_not_listen_to_other_machines() {
    let found = fault(&format!("http: {{ listen: 0.0.0.0:8787 }}\n{}", shop_with("")));
    assert!(found.starts_with("HW1012 headwater.yaml:1:17 http.listen: 0.0.0.0:8787 is open to other machines"), "{found}");
    let found = fault(&format!("http:\n  listen: 8787\n{}", shop_with("")));
    assert!(found.starts_with("HW1003 headwater.yaml:2:11 http.listen: expected a text"), "{found}");
    let found = fault(&format!("http:\n  listen: nowhere\n{}", shop_with("")));
    assert!(found.starts_with("HW1006 headwater.yaml:2:11 http.listen: \"nowhere\" is not an address"), "{found}");
    for (text, listens) in [("off", false), ("null", false), ("localhost:0", true), ("\"[::1]:80\"", true)] {
        let plan = Files::new(&format!("http: {{ listen: {text} }}\n{}", shop_with(""))).plan(&[]);
        assert_eq!(plan.listen.is_some(), listens, "{text}");
    }
}

#[test]
fn what_the_kafka_log_refuses_has_its_place() {
    let log = "log:\n  kind: kafka\n  bootstrap_servers: [ a:1, broker ]\n  security:\n    protocol: sasl_ssl\n  properties:\n    retries: \"1\"\n";
    let found = faults(&format!("{log}{}", shop_with("")));
    assert_eq!(found.len(), 3, "{found:?}");
    assert!(found[0].starts_with("HW1245 headwater.yaml:3:22 log.bootstrap_servers: \"broker\" is not an address"), "{found:?}");
    assert!(found[1].starts_with("HW1245 headwater.yaml:5:15 log.security.protocol: a login is demanded"), "{found:?}");
    assert!(found[2].starts_with("HW1245 headwater.yaml:7:14 log.properties.retries: retries cannot be changed"), "{found:?}");
    let prefix = fault(&format!("log: {{ kind: embedded, path: d, prefix: \"a b\" }}\n{}", shop_with("")));
    assert!(prefix.starts_with("HW1014 headwater.yaml:1:41 log.prefix: "), "{prefix}");
}

#[test]
fn a_file_without_connectors_is_a_warning() {
    let files = Files::new("");
    let plan = files.plan(&[]);
    assert_eq!(plan.warnings[0].code().id, "HW1017");
}

/// The point of it all: whoever wrote eleven mistakes into three files reads about eleven.
#[test]
fn all_faults_of_all_files_come_at_once_in_the_order_of_the_files() {
    let files = Files::new(&format!(
        "htpp: {{}}\nlog: {{ kind: embedded, path: d, retention_hours: a }}\ninclude: [ c/*.yaml, nothing.yaml ]\n{}",
        shop_with("    commit: { max_events: 0 }\n")
    ))
    .with(
        "c/one.yaml",
        "connectors:\n  One:\n    source:\n      kind: postgres\n      url: mysql://u@h/d\n      tables: orders\n      on_truncate: no\n    events: { topic: \"{x\" }\n",
    )
    .with("c/two.yaml", "connectors: {\n")
    .with("c/three.yaml", "connectors:\n  shop: {}\n  three: { source: { kind: unheard } }\n");
    let found = files.faults(&[]);
    let heads: Vec<&str> = found.iter().map(|fault| fault.split(": ").next().unwrap()).collect();
    assert_eq!(
        heads,
        [
            "HW1002 headwater.yaml:1:1 htpp",
            "HW1003 headwater.yaml:2:50 log.retention_hours",
            "HW1010 headwater.yaml:3:22 include[1]",
            "HW1006 headwater.yaml:10:27 connectors.shop.commit.max_events",
            "HW1014 c/one.yaml:2:3 connectors.One",
            "HW2007 c/one.yaml:5:12 connectors.One.source.url",
            "HW2007 c/one.yaml:6:15 connectors.One.source.tables",
            "HW1005 c/one.yaml:7:20 connectors.One.source.on_truncate",
            "HW1015 c/one.yaml:8:22 connectors.One.events.topic",
            "HW1007 c/three.yaml:2:3 connectors.shop",
            "HW1008 c/three.yaml:3:28 connectors.three.source.kind",
            "HW1001 c/two.yaml:1:13",
        ]
    );
}
