//! Dashboard, alert rules and service file speak of what the daemon really has.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    binlog::servers::{Flavour, shared},
    support::{daemon::Home, postgres::Postgres, root},
};

fn read(name: &str) -> String {
    std::fs::read_to_string(root().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// A metric in an expression, and the labels that it is selected or grouped by.
fn uses(expression: &str) -> Vec<(String, BTreeSet<String>)> {
    let mut found = Vec::new();
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let mut rest = expression;
    while let Some(at) = rest.find("headwater_") {
        let text = &rest[at..];
        let end = text.find(|c| !is_word(c)).unwrap_or(text.len());
        let (name, behind) = text.split_at(end);
        let labels = match behind.strip_prefix('{').and_then(|inner| inner.split_once('}')) {
            Some((inner, _)) => {
                inner.split(',').map(|part| part.split(['=', '!']).next().unwrap_or_default().trim().to_owned()).collect()
            }
            None => BTreeSet::new(),
        };
        found.push((name.to_owned(), labels));
        rest = behind;
    }
    found
}

/// Series of a scrape with their labels.
fn served(page: &str) -> BTreeMap<String, BTreeSet<String>> {
    let mut series: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for line in page.lines().filter(|line| !line.starts_with('#')) {
        let name = line.split(['{', ' ']).next().unwrap_or_default();
        let labels = line.split_once('{').and_then(|(_, rest)| rest.split_once('}')).map_or("", |(labels, _)| labels);
        let labels = labels.split(',').filter_map(|part| part.split('=').next()).filter(|label| !label.is_empty());
        series.entry(name.to_owned()).or_default().extend(labels.map(str::to_owned));
    }
    series
}

fn expressions_of_the_dashboard() -> Vec<String> {
    let dashboard: serde_json::Value = serde_json::from_str(&read("config/monitoring/grafana.json")).expect("a dashboard");
    let panels = dashboard["panels"].as_array().expect("panels");
    assert!(panels.iter().all(|panel| panel["description"].as_str().is_some_and(|text| !text.is_empty())));
    let ids: BTreeSet<u64> = panels.iter().filter_map(|panel| panel["id"].as_u64()).collect();
    assert_eq!(ids.len(), panels.len(), "every panel has an id of its own");
    let targets = panels.iter().flat_map(|panel| panel["targets"].as_array().expect("targets"));
    let mut all: Vec<String> = targets.map(|target| target["expr"].as_str().expect("an expression").to_owned()).collect();
    for variable in dashboard["templating"]["list"].as_array().expect("variables") {
        all.extend(variable["definition"].as_str().map(str::to_owned));
    }
    all
}

fn expressions_of_the_alerts() -> Vec<String> {
    let text = read("config/monitoring/alerts.yaml");
    let rules: serde_json::Value = serde_saphyr::from_str(&text).expect("rules");
    let rules = rules["groups"][0]["rules"].as_array().expect("rules").clone();
    for rule in &rules {
        let notes = &rule["annotations"];
        assert!(notes["summary"].is_string() && notes["description"].is_string(), "{rule}");
        let runbook = notes["runbook"].as_str().expect("a runbook");
        let (file, anchor) = runbook.split_once('#').unwrap_or((runbook, ""));
        let headings: Vec<String> = read(file).lines().filter(|line| line.starts_with('#')).map(slug).collect();
        assert!(anchor.is_empty() || headings.iter().any(|heading| heading == anchor), "{runbook}: {headings:?}");
    }
    rules.iter().map(|rule| rule["expr"].as_str().expect("an expression").to_owned()).collect()
}

/// A heading as links name it.
fn slug(line: &str) -> String {
    let text = line.trim_start_matches('#').trim().to_lowercase();
    text.chars().filter(|c| c.is_alphanumeric() || *c == ' ' || *c == '-').map(|c| if c == ' ' { '-' } else { c }).collect()
}

#[test]
fn dashboard_and_alerts_name_only_what_a_scrape_shows() {
    // A limit makes the server say how much it may still write.
    let server = Postgres::start_with(&["max_slot_wal_keep_size = '1GB'"]);
    let database = server.database();
    let home = Home::of_orders(&database);
    // And a source that deletes its log by age says when.
    let binlog = shared(Flavour::Mariadb);
    binlog.sql("SET GLOBAL binlog_expire_logs_seconds = 604800;\nCREATE DATABASE watched;\nCREATE TABLE watched.items (id int PRIMARY KEY)");
    home.write(
        "connectors/items.yaml",
        &format!(
            "connectors:\n  items:\n    source:\n      kind: mariadb\n      url: {}\n      tables: [ watched.items ]\n",
            binlog.url()
        ),
    );
    let mut daemon = home.start();
    daemon.wait_state("shop", "streaming");
    database.sql("INSERT INTO public.orders VALUES (1)");
    daemon.wait_caught_up("shop");
    daemon.wait_caught_up("items");
    let answer = ureq::get(format!("http://{}/metrics", home.address())).call();
    let page = answer.expect("an answer").body_mut().read_to_string().expect("a page");
    let series = served(&page);
    assert!(page.contains("headwater_source_safe_seconds{connector=\"items\"} 604800"), "all of it was read: {page}");
    let mut unused: BTreeSet<&String> = series.keys().collect();
    let mut faults = Vec::new();
    let all = [expressions_of_the_dashboard(), expressions_of_the_alerts()].concat();
    assert!(all.len() > 25, "{} expressions", all.len());
    for expression in &all {
        let found = uses(expression);
        assert!(!found.is_empty(), "{expression} names no metric");
        for (name, labels) in found {
            match series.get(&name) {
                None => faults.push(format!("{expression}: there is no {name}")),
                Some(known) => {
                    unused.remove(&name);
                    let foreign: Vec<&String> = labels.difference(known).collect();
                    if !foreign.is_empty() {
                        faults.push(format!("{expression}: {name} has no {foreign:?}"));
                    }
                }
            }
        }
    }
    assert!(faults.is_empty(), "{}\n{page}", faults.join("\n"));
    assert!(unused.iter().all(|name| name.starts_with("headwater_commit")), "nobody looks at {unused:?}");
    assert_eq!(daemon.terminate(), Some(0));
}

#[test]
fn an_expression_with_a_wrong_name_or_label_is_found_out() {
    let found = uses(r#"sum by (le) (rate(headwater_a_bucket{connector=~"$c", state="x"}[5m])) > headwater_b"#);
    assert_eq!(found[0].0, "headwater_a_bucket");
    assert_eq!(found[0].1, BTreeSet::from(["connector".to_owned(), "state".to_owned()]));
    assert_eq!(found[1], ("headwater_b".to_owned(), BTreeSet::new()));
    let page = "# TYPE x gauge\nheadwater_b{connector=\"a\",state=\"b\"} 1\nheadwater_c 2\n# EOF";
    assert_eq!(served(page)["headwater_b"], BTreeSet::from(["connector".to_owned(), "state".to_owned()]));
    assert!(served(page)["headwater_c"].is_empty());
}

#[test]
fn the_service_is_not_restarted_when_a_person_must_act() {
    let unit = read("config/systemd/headwater.service");
    let line = |key: &str| unit.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_else(|| panic!("no {key}")).to_owned();
    // What the guide says about exit codes is what the service does.
    let guide = read("docs/operating.md");
    let mut never = Vec::new();
    for row in guide.lines().filter(|row| row.starts_with("| ") && row.contains("restart")) {
        let code = row.split('|').nth(1).unwrap_or_default().trim();
        if code.len() == 1 && (row.contains("never restart") || row.contains("not restart")) {
            never.push(code.to_owned());
        }
    }
    assert_eq!(never, ["2", "4"]);
    assert_eq!(line("RestartPreventExitStatus="), never.join(" "));
    assert!(line("ExecReload=").contains("-HUP $MAINPID"));
    assert!(line("ExecStart=").ends_with("headwater.yaml run"));
}
