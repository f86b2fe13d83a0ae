//! Every file below `config/` loads, and says what its comments say.

use std::path::{Path, PathBuf};

use super::root;
use crate::{
    config::{
        load,
        plan::Plan,
        reference::{self, OptionRow},
        schema,
    },
    log::LogPlan,
    registry::CONNECTORS,
};

/// The main files, with the variables that stand in for secrets.
const MAIN_FILES: &[(&str, &[&str])] = &[
    ("headwater.yaml", &["SHOP"]),
    ("compose/headwater.yaml", &["SHOP"]),
    ("compose/headwater-mysql.yaml", &["WAREHOUSE"]),
    ("examples/all-options.yaml", &["SHOP"]),
    ("examples/kafka-sasl.yaml", &["ORDERS", "LOG"]),
    ("examples/mariadb-to-embedded.yaml", &["SHOP"]),
    ("examples/mysql-to-kafka.yaml", &["SHOP"]),
    ("examples/postgres-to-embedded.yaml", &[]),
    ("examples/postgres-to-kafka.yaml", &["SHOP"]),
    ("examples/several-files/headwater.yaml", &["SHOP", "BILLING"]),
];

/// What [`MAIN_FILES`] include, and what is no config.
const OTHERS: &[&str] = &[
    "examples/several-files/connectors/billing.yaml",
    "examples/several-files/connectors/shop.yaml",
    "schema.json",
    ".gitignore",
    "compose/shop.sql",
    "compose/shop-mysql.sql",
];

/// What is no config of ours; `tests/monitoring.rs` holds these.
const FOREIGN: &[&str] = &["monitoring/", "systemd/"];

fn load_example(name: &str, secrets: &[&str]) -> Plan {
    let env = secrets.iter().map(|owner| {
        let variable = match *owner {
            "LOG" => "HEADWATER_LOG__SECURITY__SASL__PASSWORD".to_owned(),
            connector => format!("HEADWATER_CONNECTORS__{connector}__SOURCE__PASSWORD"),
        };
        (variable, "secret".to_owned())
    });
    let plan = load(&root().join("config").join(name), env).unwrap_or_else(|faults| panic!("{faults:#?}"));
    assert!(plan.warnings.is_empty(), "{name}: {:?}", plan.warnings);
    plan
}

fn named(name: &str) -> Plan {
    let (name, secrets) = MAIN_FILES.iter().find(|(file, _)| file.ends_with(name)).unwrap();
    load_example(name, secrets)
}

fn files_below(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        // Somebody who tries an example leaves a log behind.
        if path.ends_with("data") {
            continue;
        }
        if path.is_dir() { files_below(&path, found) } else { found.push(path) }
    }
}

#[test]
fn every_example_loads_and_every_file_is_known() {
    for (name, secrets) in MAIN_FILES {
        assert!(!load_example(name, secrets).sources.is_empty(), "{name}");
    }
    let config = root().join("config");
    let mut files = Vec::new();
    files_below(&config, &mut files);
    for file in files {
        let name = file.strip_prefix(&config).unwrap().to_str().unwrap();
        if FOREIGN.iter().any(|directory| name.starts_with(directory)) {
            continue;
        }
        assert!(MAIN_FILES.iter().any(|(main, _)| *main == name) || OTHERS.contains(&name), "no test knows config/{name}");
        if name.ends_with(".yaml") {
            let text = std::fs::read_to_string(&file).unwrap();
            let schema = text.lines().next().unwrap().strip_prefix("# yaml-language-server: $schema=");
            let schema = schema.unwrap_or_else(|| panic!("{name} names no schema in its first line"));
            assert!(file.parent().unwrap().join(schema).is_file(), "{name}: {schema}");
        }
    }
}

#[test]
fn the_kafka_example_names_what_the_comments_say() {
    let plan = named("postgres-to-kafka.yaml");
    let LogPlan::Kafka(log) = &plan.log else { panic!("embedded") };
    assert_eq!(log.bootstrap_servers, ["localhost:9092"]);
    let rule = &plan.sources[0].events.tables["public.orders"];
    assert_eq!(rule.entity.as_deref(), Some("order"));
    assert_eq!(
        (rule.key.clone().unwrap(), rule.exclude.clone().unwrap()),
        (vec!["id".to_owned()], vec!["internal_note".to_owned()])
    );
}

#[test]
fn several_files_make_one_plan() {
    let plan = named("several-files/headwater.yaml");
    let names: Vec<&str> = plan.sources.iter().map(|source| source.name.as_str()).collect();
    assert_eq!(names, ["billing", "shop"]);
}

/// Plainly with its default, or in a comment.
fn stands_in(text: &str, row: &OptionRow) -> Result<(), String> {
    let leaf = row.name.rsplit('.').next().unwrap();
    let values = text.lines().filter_map(|line| {
        let line = line.trim_start_matches([' ', '#']);
        let (_, value) =
            line.split_once(&format!("{leaf}: ")).filter(|(before, _)| before.is_empty() || before.ends_with([' ', '{']))?;
        Some(value.trim().trim_matches('"').to_owned())
    });
    let values: Vec<String> = values.collect();
    let is_part = text.lines().any(|line| line.trim_start_matches([' ', '#']) == format!("{leaf}:"));
    match &row.default {
        _ if values.is_empty() && !is_part => Err(format!("{} is not mentioned", row.name)),
        Some(default) if !is_part && !default.is_array() => {
            let default = default.as_str().map_or_else(|| default.to_string(), str::to_owned);
            values
                .contains(&default)
                .then_some(())
                .ok_or_else(|| format!("{} has {values:?}, the default is {default}", row.name))
        }
        _ => Ok(()),
    }
}

#[test]
fn all_options_has_them_all_with_their_defaults() {
    named("all-options.yaml");
    let text = std::fs::read_to_string(root().join("config/examples/all-options.yaml")).unwrap();
    let whole = schema::whole(CONNECTORS);
    let rows = reference::options(&whole, &whole);
    assert!(rows.len() > 40, "{}", rows.len());
    let faults: Vec<String> = rows.iter().filter_map(|row| stands_in(&text, row).err()).collect();
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn all_options_has_a_kafka_log_that_loads_as_well() {
    let text = std::fs::read_to_string(root().join("config/examples/all-options.yaml")).unwrap();
    let kafka = text.lines().skip_while(|line| *line != "# log:").take_while(|line| line.starts_with("# "));
    let kafka: String = kafka.map(|line| format!("{}\n", &line[2..])).collect();
    let files = super::Files::new(&kafka).with("client.key.password", "secret");
    let plan = files.plan(&[("HEADWATER_LOG__SECURITY__SASL__PASSWORD", "secret")]);
    assert!(matches!(plan.log, LogPlan::Kafka(_)));
}
