//! The publication: which tables the server decodes for us.

use headwater_connector::{Error, Result};

use crate::{
    catalog::{Catalog, TableFacts, cell, flag},
    codes,
    config::Settings,
    connection::{ident, literal},
};

/// A publication as the server has it.
#[derive(Debug)]
pub struct Publication {
    /// Names of what it leaves out of insert, update, delete, truncate.
    pub lacks: Vec<&'static str>,
    /// Whether changes of partitions come under the name of the partitioned table.
    pub via_root: bool,
    /// Whether the role owns it, which changing it needs.
    pub owned: bool,
    /// `schema.table` of its tables.
    tables: Vec<String>,
}

impl Publication {
    /// The selected tables that it does not have.
    pub fn missing<'a>(&self, tables: &'a [TableFacts]) -> Vec<&'a TableFacts> {
        tables.iter().filter(|table| !self.tables.contains(&table.full_name())).collect()
    }

    /// Fails if it leaves out what a mirror of the tables needs.
    pub fn require_whole(&self, settings: &Settings, tables: &[TableFacts]) -> Result<()> {
        let name = ident(&settings.publication);
        let fault = |what: String, set: &str| {
            Err(Error::new(&codes::PUBLICATION_PARTIAL, what)
                .at("publication", &settings.publication)
                .hint(format!("Run ALTER PUBLICATION {name} SET ({set});")))
        };
        if !self.lacks.is_empty() {
            return fault(
                format!("the publication leaves out {}", self.lacks.join(", ")),
                "publish = 'insert, update, delete, truncate'",
            );
        }
        if !self.via_root && tables.iter().any(|table| table.partitioned) {
            return fault(
                "the publication publishes partitions instead of the partitioned table".into(),
                "publish_via_partition_root = true",
            );
        }
        Ok(())
    }
}

/// Looks it up; none if it does not exist.
pub async fn find(catalog: &mut Catalog, settings: &Settings) -> Result<Option<Publication>> {
    let name = literal(&settings.publication);
    let rows = catalog
        .query(&format!(
            "SELECT pubinsert, pubupdate, pubdelete, pubtruncate, pubviaroot, pg_has_role(pubowner, 'USAGE') \
             FROM pg_publication WHERE pubname = {name}"
        ))
        .await?;
    let Some(row) = rows.first() else { return Ok(None) };
    let kinds = ["insert", "update", "delete", "truncate"];
    let lacks = kinds.iter().enumerate().filter(|(at, _)| !flag(row, *at)).map(|(_, kind)| *kind).collect();
    let tables =
        catalog.query(&format!("SELECT schemaname, tablename FROM pg_publication_tables WHERE pubname = {name}")).await?;
    let tables = tables.iter().map(|row| format!("{}.{}", cell(row, 0), cell(row, 1))).collect();
    Ok(Some(Publication { lacks, via_root: flag(row, 4), owned: flag(row, 5), tables }))
}

fn list<'a>(tables: impl IntoIterator<Item = &'a TableFacts>) -> String {
    let names = tables.into_iter().map(|table| format!("{}.{}", ident(&table.schema), ident(&table.name)));
    names.collect::<Vec<_>>().join(", ")
}

/// The statement that creates it.
pub fn create_statement(settings: &Settings, tables: &[TableFacts]) -> String {
    let (name, tables) = (ident(&settings.publication), list(tables));
    format!("CREATE PUBLICATION {name} FOR TABLE {tables} WITH (publish_via_partition_root = true)")
}

/// The statement that adds tables.
pub fn add_statement(settings: &Settings, missing: &[&TableFacts]) -> String {
    format!("ALTER PUBLICATION {} ADD TABLE {}", ident(&settings.publication), list(missing.iter().copied()))
}

/// Creates it, or adds tables to it. Comes before the slot: the server could not decode what was written while there was a slot
/// and no publication.
pub async fn create(catalog: &mut Catalog, settings: &Settings, tables: &[TableFacts]) -> Result<()> {
    if find(catalog, settings).await?.is_some() {
        return extend(catalog, settings, tables).await;
    }
    run(catalog, settings, &create_statement(settings, tables)).await
}

/// Adds newly selected tables to one that must exist (P20: one that is created again cannot decode the past).
pub async fn extend(catalog: &mut Catalog, settings: &Settings, tables: &[TableFacts]) -> Result<()> {
    let Some(found) = find(catalog, settings).await? else {
        return Err(Error::new(&codes::PUBLICATION_MISSING, "the publication does not exist")
            .at("publication", &settings.publication)
            .hint("Restore the database with its publication, or begin anew under another connector name."));
    };
    found.require_whole(settings, tables)?;
    let missing = found.missing(tables);
    if missing.is_empty() {
        return Ok(());
    }
    run(catalog, settings, &add_statement(settings, &missing)).await
}

async fn run(catalog: &mut Catalog, settings: &Settings, statement: &str) -> Result<()> {
    let Err(refused) = catalog.sql().await?.try_query(statement).await? else { return Ok(()) };
    // Two starts at once: the other one was faster, with the same statement.
    if refused.state == "42710" {
        return Ok(());
    }
    let privilege = refused.state == "42501";
    let error = refused.into_error().at("publication", &settings.publication);
    Err(if privilege { error.hint(format!("Let the owner of the tables run {statement};")) } else { error })
}
