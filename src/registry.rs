//! The connectors that are compiled in. A new one is a crate and a line here.

use headwater_connector::ConnectorKind;

use crate::config::closest::closest;

/// Every kind of connector, in the order of lists.
pub static CONNECTORS: &[&dyn ConnectorKind] = &[&headwater_mysql::MYSQL, &headwater_postgres::POSTGRES];

/// The kind of this name or synonym; else the closest name, if one is close.
pub fn find(kinds: &[&'static dyn ConnectorKind], name: &str) -> Result<&'static dyn ConnectorKind, Option<&'static str>> {
    let fits = |kind: &&&'static dyn ConnectorKind| kind.name() == name || kind.synonyms().contains(&name);
    match kinds.iter().find(fits) {
        Some(kind) => Ok(*kind),
        None => {
            let names = kinds.iter().flat_map(|kind| std::iter::once(kind.name()).chain(kind.synonyms().iter().copied()));
            Err(closest(name, names))
        }
    }
}
