//! The three languages say the same, and paths mean the same place whoever reads them.

use super::{Files, shop_with};
use crate::{config::plan::Plan, log::LogPlan};

const YAML: &str = r#"
log: { kind: kafka, bootstrap_servers: [ "one:9092" ], replication_factor: 3, properties: { client.rack: "7" } }
http: { listen: "127.0.0.1:1234" }
connectors:
  shop:
    source: { kind: postgres, url: postgres://u@localhost/d, tables: [ public.orders ] }
    events: { topic: "{entity}", partitions: 4, tables: { public.orders: { entity: order, key: [ id ] } } }
    commit: { linger_ms: 1 }
"#;

const TOML: &str = r#"
[log]
kind = "kafka"
bootstrap_servers = ["one:9092"]
replication_factor = 3
properties = { "client.rack" = "7" }

[http]
listen = "127.0.0.1:1234"

[connectors.shop]
commit.linger_ms = 1

[connectors.shop.source]
kind = "postgres"
url = "postgres://u@localhost/d"
tables = ["public.orders"]

[connectors.shop.events]
topic = "{entity}"
partitions = 4
tables."public.orders" = { entity = "order", key = ["id"] }
"#;

const JSON: &str = r#"{
  "log": {
    "kind": "kafka", "bootstrap_servers": ["one:9092"], "replication_factor": 3, "properties": { "client.rack": "7" }
  },
  "http": { "listen": "127.0.0.1:1234" },
  "connectors": { "shop": {
    "source": { "kind": "postgres", "url": "postgres://u@localhost/d", "tables": ["public.orders"] },
    "events": { "topic": "{entity}", "partitions": 4, "tables": { "public.orders": { "entity": "order", "key": ["id"] } } },
    "commit": { "linger_ms": 1 }
  } }
}"#;

/// Everything that the files say, without the name of the file.
fn meaning(plan: &Plan) -> String {
    let log = match &plan.log {
        LogPlan::Embedded(options) => format!("{options:?}"),
        LogPlan::Kafka(options) => format!("{options:?}"),
    };
    let sources = plan.sources.iter().map(|source| {
        format!("{} {} {} {:?} {:?}", source.name, source.kind.name(), source.connector.endpoint(), source.events, source.commit)
    });
    format!("{log} {} {:?} {:?}", plan.prefix, plan.listen, sources.collect::<Vec<_>>())
}

#[test]
fn yaml_toml_and_json_mean_the_same() {
    let load = |name: &str, text: &str| {
        let files = Files::empty().with(name, text);
        let plan = files.load_file(name, &[]).unwrap_or_else(|faults| panic!("{}", files.rendered(&faults).join("\n")));
        meaning(&plan)
    };
    let yaml = load("headwater.yaml", YAML);
    assert!(yaml.contains("client.rack") && yaml.contains("localhost:5432/d"), "{yaml}");
    assert_eq!(yaml, load("headwater.yml", YAML));
    assert_eq!(yaml, load("headwater.toml", TOML));
    assert_eq!(yaml, load("headwater.json", JSON));
    // JSON is YAML.
    assert_eq!(yaml, load("headwater.yaml", JSON));
}

#[test]
fn places_are_exact_in_all_three() {
    let place = |name: &str, text: String| {
        let files = Files::empty().with(name, &text);
        files.rendered(&files.load_file(name, &[]).err().unwrap()).join("\n")
    };
    let yaml = place("headwater.yaml", YAML.replace("partitions: 4", "partitions: x"));
    assert!(yaml.starts_with("HW1003 headwater.yaml:7:46 connectors.shop.events.partitions"), "{yaml}");
    let toml = place("headwater.toml", TOML.replace("partitions = 4", "partitions = 'x'"));
    assert!(toml.starts_with("HW1003 headwater.toml:21:14 connectors.shop.events.partitions"), "{toml}");
    let json = place("headwater.json", JSON.replace("\"partitions\": 4", "\"partitions\": \"x\""));
    assert!(json.starts_with("HW1003 headwater.json:8:52 connectors.shop.events.partitions"), "{json}");
    // Columns count characters, not bytes.
    let wide = place("headwater.json", "{ \"connectors\": { \"ä\": 5 } }".to_owned());
    assert!(
        wide.ends_with("\nHW1003 headwater.json:1:24 connectors.ä: expected a map, found a number -> Write a map here."),
        "{wide}"
    );
}

#[test]
fn a_source_with_three_keys_works() {
    let files =
        Files::new("connectors: { shop: { source: { kind: postgres, url: postgres://u@localhost/d, tables: public.orders } } }");
    let plan = files.plan(&[]);
    assert_eq!((plan.prefix.as_str(), plan.sources[0].events.topic.0.as_str()), ("headwater", "{connector}.{entity}"));
    assert_eq!(plan.listen.unwrap().to_string(), "127.0.0.1:8787");
    let LogPlan::Embedded(options) = plan.log else { panic!("kafka") };
    assert_eq!(options.path, files.path("data"));
    assert!(plan.warnings.is_empty());
}

#[test]
fn the_synonym_of_a_kind_is_the_kind() {
    let plan = Files::new(&shop_with("").replace("kind: postgres", "kind: postgresql")).plan(&[]);
    assert_eq!(plan.sources[0].kind.name(), "postgres");
}

#[test]
fn paths_are_relative_to_the_file_that_says_them() {
    let log = "log:\n  kind: kafka\n  bootstrap_servers: [ b:1 ]\n  security: { ca_file: ca.pem, certificate_file: /etc/c.pem, key_file: ../k.pem }\n";
    let files = Files::empty().with("etc/headwater.yaml", &format!("{log}{}", shop_with("")));
    let Ok(plan) = files.load_file("etc/headwater.yaml", &[("HEADWATER_LOG__SECURITY__CA_FILE", "other.pem")]) else { panic!() };
    let LogPlan::Kafka(options) = plan.log else { panic!("embedded") };
    let security = options.security;
    // From the environment: relative to the main file.
    assert_eq!(security.ca_file.unwrap(), files.path("etc/other.pem"));
    assert_eq!(security.certificate_file.unwrap().to_str(), Some("/etc/c.pem"));
    assert_eq!(security.key_file.unwrap(), files.path("etc/../k.pem"));
    let files = Files::empty().with("etc/headwater.yaml", &format!("log: {{ kind: embedded, path: ./d }}\n{}", shop_with("")));
    let Ok(plan) = files.load_file("etc/headwater.yaml", &[]) else { panic!() };
    let LogPlan::Embedded(options) = plan.log else { panic!("kafka") };
    assert_eq!(options.path, files.path("etc/d"));
}

#[test]
fn a_plan_names_the_file_of_each_connector() {
    let files = Files::new(&format!("include: [ c/*.yaml ]\n{}", shop_with("")))
        .with("c/b.yaml", &shop_with("").replace("  shop:", "  b:"))
        .with("c/a.toml", "")
        .with("c/a.yaml", &shop_with("").replace("  shop:", "  a:"));
    let plan = files.plan(&[]);
    let found: Vec<_> = plan.sources.iter().map(|source| (source.name.as_str(), source.file.clone())).collect();
    assert_eq!(found, [("shop", files.path("headwater.yaml")), ("a", files.path("c/a.yaml")), ("b", files.path("c/b.yaml"))]);
}

#[test]
fn a_byte_order_mark_and_an_empty_part_are_nothing() {
    let plan = Files::new(&format!("\u{feff}http:\nlog:\ninclude:\n{}", shop_with("    events:\n    commit:\n")));
    assert_eq!(plan.plan(&[]).sources.len(), 1);
}

#[test]
fn tail_and_status_need_no_secret_of_a_connector() {
    let main = shop_with("").replace("      tables", "      password: { env: HW_TEST_NEVER_SET }\n      tables");
    let files = Files::new(&format!("http: {{ listen: localhost:7 }}\nlog: {{ kind: embedded, path: d, prefix: p }}\n{main}"));
    assert!(files.load(&[]).is_err());
    let path = files.path("headwater.yaml");
    let Ok((_, prefix)) = crate::config::load_log(&path, std::iter::empty()) else { panic!() };
    assert_eq!(prefix, "p");
    assert_eq!(crate::config::load_http(&path, std::iter::empty()).unwrap().unwrap().port(), 7);
}
