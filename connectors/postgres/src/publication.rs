//! The publication: which tables the server decodes for us.

use headwater_connector::{Error, Result};

use crate::{
    catalog::{Catalog, TableFacts, cell, flag, number},
    codes,
    config::Settings,
    connection::{ident, literal},
};

/// How our comment on a publication begins. It lists the object ids of the tables that we have found in it or added to it, so that a table
/// that somebody removed is told apart from one that is new.
const COMMENT: &str = "headwater reads these tables through it: ";

/// A publication as the server has it.
#[derive(Debug)]
pub struct Publication {
    /// Its object id: one that is created again is another one.
    pub oid: u32,
    /// Names of what it leaves out of insert, update, delete, truncate.
    pub lacks: Vec<&'static str>,
    /// Whether changes of partitions come under the name of the partitioned table.
    pub via_root: bool,
    /// Whether the role owns it, which changing it needs.
    pub owned: bool,
    /// `schema.table` of its tables.
    tables: Vec<String>,
    /// Of those of which it publishes only some rows or columns (15 and newer).
    pub partial: Vec<String>,
    /// Its comment.
    comment: String,
}

impl Publication {
    /// The selected tables that it does not have.
    pub fn missing<'a>(&self, tables: &'a [TableFacts]) -> Vec<&'a TableFacts> {
        tables.iter().filter(|table| !self.tables.contains(&table.full_name())).collect()
    }

    /// Fails if a table that we have read through it was taken out of it: its changes since then are missing from the stream, and adding it
    /// again would hide that.
    pub fn require_kept(&self, settings: &Settings, tables: &[TableFacts]) -> Result<()> {
        let Some(known) = self.comment.strip_prefix(COMMENT) else { return Ok(()) };
        let known: Vec<&str> = known.split_whitespace().collect();
        let lost = self.missing(tables).into_iter().filter(|table| known.contains(&table.oid.to_string().as_str()));
        let lost: Vec<&TableFacts> = lost.collect();
        if lost.is_empty() { Ok(()) } else { Err(unpublished(settings, &lost)) }
    }

    /// The statement that notes the tables, if it is ours to do and not done yet.
    fn note(&self, settings: &Settings, tables: &[TableFacts]) -> Option<String> {
        let ours = self.owned && (self.comment.is_empty() || self.comment.starts_with(COMMENT));
        let text = comment(tables);
        (ours && text != self.comment).then(|| note_statement(settings, tables))
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
            "SELECT pubinsert, pubupdate, pubdelete, pubtruncate, pubviaroot, pg_has_role(pubowner, 'USAGE'), oid, \
             coalesce(obj_description(oid, 'pg_publication'), '') FROM pg_publication WHERE pubname = {name}"
        ))
        .await?;
    let Some(row) = rows.first() else { return Ok(None) };
    let kinds = ["insert", "update", "delete", "truncate"];
    let lacks = kinds.iter().enumerate().filter(|(at, _)| !flag(row, *at)).map(|(_, kind)| *kind).collect();
    // A table can be dropped between the lines of one statement, so names are looked up in a way that finds nothing then.
    let tables =
        catalog
            .query(&format!(
                "SELECT schemaname, tablename, to_jsonb(t) ->> 'rowfilter' IS NOT NULL OR EXISTS \
                 (SELECT FROM pg_attribute a WHERE a.attrelid = to_regclass(quote_ident(schemaname) || '.' || quote_ident(tablename)) \
                 AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = '' AND NOT to_jsonb(t) -> 'attnames' ? a.attname::text) \
                 FROM pg_publication_tables t WHERE pubname = {name}"
            ))
            .await?;
    let full = |row: &Vec<Option<String>>| format!("{}.{}", cell(row, 0), cell(row, 1));
    let partial = tables.iter().filter(|row| flag(row, 2)).map(full).collect();
    let tables = tables.iter().map(full).collect();
    let (oid, comment) = (number(row, 6)?, cell(row, 7).to_owned());
    Ok(Some(Publication { oid, lacks, via_root: flag(row, 4), owned: flag(row, 5), tables, partial, comment }))
}

/// The publication of a checkpoint is gone.
pub fn gone(settings: &Settings, what: &str) -> Error {
    Error::new(&codes::PUBLICATION_MISSING, what)
        .at("publication", &settings.publication)
        .hint("Restore the database with its publication, or begin anew with `headwater reset`.")
}

/// Tables that were read are not in it any more.
fn unpublished(settings: &Settings, tables: &[&TableFacts]) -> Error {
    let names = tables.iter().map(|table| table.full_name()).collect::<Vec<_>>().join(", ");
    Error::new(&codes::TABLE_UNPUBLISHED, "a table that was read is not in the publication any more")
        .at("publication", &settings.publication)
        .at("table", names)
        .hint(format!("Accept that its changes are missing since then, and run {};", add_statement(settings, tables)))
}

fn comment(tables: &[TableFacts]) -> String {
    let mut oids: Vec<u32> = tables.iter().map(|table| table.oid).collect();
    oids.sort_unstable();
    let oids: Vec<String> = oids.iter().map(u32::to_string).collect();
    format!("{COMMENT}{}", oids.join(" "))
}

fn note_statement(settings: &Settings, tables: &[TableFacts]) -> String {
    format!("COMMENT ON PUBLICATION {} IS {}", ident(&settings.publication), literal(&comment(tables)))
}

/// What a running stream depends on, looked at from time to time: pgoutput just stops sending what is not published any more.
pub async fn require_unchanged(catalog: &mut Catalog, settings: &Settings, oid: u32, tables: &[TableFacts]) -> Result<()> {
    let found = match find(catalog, settings).await? {
        Some(found) if found.oid == oid => found,
        Some(_) => return Err(gone(settings, "the publication was dropped and created again")),
        None => return Err(gone(settings, "the publication was dropped")),
    };
    found.require_whole(settings, tables)?;
    let oids: Vec<String> = tables.iter().map(|table| table.oid.to_string()).collect();
    // A table that was dropped is no loss, and one that became a partition is published under its root's name.
    let sql = format!(
        "SELECT c.oid FROM pg_class c WHERE c.oid = ANY ('{{{}}}'::oid[]) AND NOT EXISTS \
         (SELECT FROM pg_get_publication_tables({}) p WHERE p.relid = c.oid \
         OR p.relid IN (SELECT relid FROM pg_partition_ancestors(c.oid)))",
        oids.join(","),
        literal(&settings.publication)
    );
    let rows = match catalog.sql().await?.try_query(&sql).await? {
        Ok(rows) => rows,
        // Dropped since we looked.
        Err(refused) if refused.state == "42704" => return Err(gone(settings, "the publication was dropped")),
        Err(refused) => return Err(refused.into_error()),
    };
    let lost: Vec<&TableFacts> =
        tables.iter().filter(|table| rows.iter().any(|row| cell(row, 0) == table.oid.to_string())).collect();
    if lost.is_empty() { Ok(()) } else { Err(unpublished(settings, &lost)) }
}

fn list<'a>(tables: impl IntoIterator<Item = &'a TableFacts>) -> String {
    let names = tables.into_iter().map(|table| format!("{}.{}", ident(&table.schema), ident(&table.name)));
    names.collect::<Vec<_>>().join(", ")
}

/// The statement that creates it.
pub async fn create_statement(catalog: &mut Catalog, settings: &Settings, tables: &[TableFacts]) -> Result<String> {
    let (name, tables) = (ident(&settings.publication), list(tables));
    // A reader of the topic sees what a reader of the table sees, as far as the server can.
    let version: u32 = catalog.setting("server_version_num").await?.parse().unwrap_or_default();
    let generated = if version >= 180_000 { ", publish_generated_columns = stored" } else { "" };
    Ok(format!("CREATE PUBLICATION {name} FOR TABLE {tables} WITH (publish_via_partition_root = true{generated})"))
}

/// The statement that adds tables.
pub fn add_statement(settings: &Settings, missing: &[&TableFacts]) -> String {
    format!("ALTER PUBLICATION {} ADD TABLE {}", ident(&settings.publication), list(missing.iter().copied()))
}

/// The statement that publishes the tables whole.
pub fn set_statement(settings: &Settings, tables: &[TableFacts]) -> String {
    format!("ALTER PUBLICATION {} SET TABLE {}", ident(&settings.publication), list(tables))
}

/// Creates it, or adds tables to it. Comes before the slot: the server could not decode what was written while there was a slot
/// and no publication.
pub async fn create(catalog: &mut Catalog, settings: &Settings, tables: &[TableFacts]) -> Result<()> {
    if find(catalog, settings).await?.is_some() {
        return extend(catalog, settings, tables, None).await.map(drop);
    }
    let statement = create_statement(catalog, settings, tables).await?;
    let both = format!("{statement}; {}", note_statement(settings, tables));
    run(catalog, settings, &statement, &both).await
}

/// Adds newly selected tables to one that must exist (P20: one that is created again cannot decode the past, and since version 18 the
/// server does not even say so). `id` is the object id that a checkpoint knows. The object id.
pub async fn extend(catalog: &mut Catalog, settings: &Settings, tables: &[TableFacts], id: Option<&str>) -> Result<u32> {
    let Some(found) = find(catalog, settings).await? else { return Err(gone(settings, "the publication does not exist")) };
    if id.is_some_and(|id| !id.is_empty() && id != found.oid.to_string()) {
        return Err(gone(settings, "the publication was dropped and created again"));
    }
    found.require_whole(settings, tables)?;
    found.require_kept(settings, tables)?;
    let missing = found.missing(tables);
    let note = found.note(settings, tables);
    if !missing.is_empty() {
        let statement = add_statement(settings, &missing);
        let both = note.map_or_else(|| statement.clone(), |note| format!("{statement}; {note}"));
        run(catalog, settings, &statement, &both).await?;
    } else if let (Some(note), false) = (note, catalog.is_standby().await?) {
        run(catalog, settings, &note, &note).await?;
    }
    Ok(found.oid)
}

/// Runs `all`, which is one transaction; `statement` is its part that matters to whoever must run it instead.
async fn run(catalog: &mut Catalog, settings: &Settings, statement: &str, all: &str) -> Result<()> {
    let Err(refused) = catalog.sql().await?.try_query(all).await? else { return Ok(()) };
    // Two starts at once: the other one was faster, with the same statement.
    if refused.state == "42710" {
        return Ok(());
    }
    if refused.state == "25006" {
        return Err(Error::new(&codes::READ_ONLY, "a standby cannot change the publication")
            .at("publication", &settings.publication)
            .hint(format!("Run {statement}; at the primary.")));
    }
    let privilege = refused.state == "42501";
    let error = refused.into_error().at("publication", &settings.publication);
    Err(if privilege { error.hint(format!("Let the owner of the tables run {statement};")) } else { error })
}
