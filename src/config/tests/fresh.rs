//! Files that are generated from the option structs. The test writes what is stale and fails once, so that the change is seen
//! and committed.

use super::root;
use crate::{
    config::{reference, schema},
    registry::CONNECTORS,
};

#[test]
fn the_schema_and_the_reference_are_fresh() {
    let whole = schema::whole(CONNECTORS);
    let mut files = vec![
        ("config/schema.json".to_owned(), serde_json::to_string_pretty(&whole).unwrap() + "\n"),
        ("docs/reference/config.md".to_owned(), reference::main_page(&whole)),
        ("docs/reference/events.md".to_owned(), reference::events_page(&whole)),
        ("docs/reference/log.md".to_owned(), reference::log_page(&whole)),
    ];
    for kind in CONNECTORS {
        files.extend(reference::source_page(*kind).map(|page| (format!("docs/reference/{}.md", kind.name()), page)));
    }
    let stale: Vec<&str> = files
        .iter()
        .filter(|(name, text)| std::fs::read_to_string(root().join(name)).ok().as_ref() != Some(text))
        .map(|(name, text)| {
            std::fs::write(root().join(name), text).unwrap();
            name.as_str()
        })
        .collect();
    assert!(stale.is_empty(), "these were stale and are rewritten now; commit them: {stale:?}");
}

#[test]
fn every_option_is_described() {
    let whole = schema::whole(CONNECTORS);
    let silent: Vec<String> =
        reference::options(&whole, &whole).into_iter().filter(|row| row.description.is_empty()).map(|row| row.name).collect();
    assert!(silent.is_empty(), "{silent:?}");
}
