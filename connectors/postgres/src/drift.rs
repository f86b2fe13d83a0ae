//! What happens around the captured tables and never appears in the stream: partitions that come and go with their rows, a leaf that is
//! truncated by itself, tables that match the options and are not captured yet. The topics differ from the tables then, and somebody
//! should know.

use std::collections::BTreeMap;

use headwater_connector::{Error, Result};

use crate::{
    catalog::{Catalog, TableFacts, cell, flag, number},
    codes,
    config::Settings,
};

/// A partition that holds rows itself.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Leaf {
    root: String,
    name: String,
    /// Changes when the storage is replaced: TRUNCATE, VACUUM FULL, CLUSTER.
    storage: u64,
    has_rows: bool,
    /// Rows deleted so far; TRUNCATE does not count.
    deleted: i64,
}

/// What was seen, and what it means.
#[derive(Debug, Default)]
pub struct Drift {
    leaves: Option<BTreeMap<u32, Leaf>>,
    told: Vec<Told>,
}

#[derive(Clone, Debug)]
struct Told {
    code: &'static headwater_connector::Code,
    table: String,
    what: String,
    hint: String,
}

impl Told {
    fn is(&self, other: &Self) -> bool {
        (self.code.id, &self.table, &self.what) == (other.code.id, &other.table, &other.what)
    }
}

impl Drift {
    /// Looks once more; a difference is logged when it is seen first.
    pub async fn look(&mut self, catalog: &mut Catalog, settings: &Settings, tables: &[TableFacts]) -> Result<()> {
        let mut found = uncaptured(catalog, settings, tables).await?;
        // What is captured by now, after a restart of the connector elsewhere, is no news any more.
        self.told.retain(|told| told.code.id != codes::UNCAPTURED.id || found.iter().any(|found| found.is(told)));
        let roots: Vec<u32> = tables.iter().filter(|table| table.partitioned).map(|table| table.oid).collect();
        if !roots.is_empty() {
            let now = leaves(catalog, &roots).await?;
            if let Some(before) = &self.leaves {
                found.extend(differences(catalog, before, &now).await?);
            }
            self.leaves = Some(now.into_iter().map(|(oid, (leaf, _))| (oid, leaf)).collect());
        }
        for told in found {
            if !self.told.iter().any(|known| known.is(&told)) {
                tracing::warn!(table = told.table, code = told.code.id, hint = told.hint, "{}", told.what);
                self.told.push(told);
            }
        }
        Ok(())
    }

    /// Everything that was found since the source was opened.
    pub fn findings(&self) -> Vec<Error> {
        let error = |told: &Told| Error::new(told.code, &told.what).at("table", &told.table).hint(&told.hint);
        self.told.iter().map(error).collect()
    }
}

/// Tables that the options select, and that were not there, or were others, when the source was opened.
async fn uncaptured(catalog: &mut Catalog, settings: &Settings, tables: &[TableFacts]) -> Result<Vec<Told>> {
    let known: Vec<String> = tables.iter().map(|table| table.oid.to_string()).collect();
    let rows = catalog
        .query(&format!(
            "SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
             WHERE c.relkind IN ('r', 'p') AND c.relpersistence = 'p' AND NOT c.relispartition \
             AND n.nspname NOT IN ('pg_catalog', 'information_schema') AND n.nspname NOT LIKE 'pg\\_%' \
             AND c.oid <> ALL ('{{{}}}'::oid[]) ORDER BY 1, 2",
            known.join(",")
        ))
        .await?;
    let selected = rows.iter().filter(|row| settings.tables.selects(cell(row, 0), cell(row, 1)));
    Ok(selected
        .map(|row| Told {
            code: &codes::UNCAPTURED,
            table: format!("{}.{}", cell(row, 0), cell(row, 1)),
            what: "the table matches `tables` and is not captured yet".to_owned(),
            hint: "Run `headwater restart CONNECTOR`: its changes are published from then on.".to_owned(),
        })
        .collect())
}

type Leaves = BTreeMap<u32, (Leaf, bool)>;

/// The leaves of partitioned tables; true marks one that was attached, not created as a partition.
async fn leaves(catalog: &mut Catalog, roots: &[u32]) -> Result<Leaves> {
    let roots = roots.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
    // A table that is created as a partition is inherited by the transaction that made its system columns.
    let rows = catalog
        .query(&format!(
            "SELECT c.oid, r.oid::regclass, c.oid::regclass, c.relfilenode, pg_relation_size(c.oid) > 0, \
             pg_stat_get_tuples_deleted(c.oid), \
             (SELECT a.xmin::text FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attname = 'ctid') \
             <> (SELECT i.xmin::text FROM pg_inherits i WHERE i.inhrelid = c.oid) \
             FROM unnest('{{{roots}}}'::oid[]) AS r(oid), pg_partition_tree(r.oid) p JOIN pg_class c ON c.oid = p.relid WHERE p.isleaf"
        ))
        .await?;
    rows.iter()
        .map(|row| {
            let leaf = Leaf {
                root: cell(row, 1).to_owned(),
                name: cell(row, 2).to_owned(),
                storage: number(row, 3)?,
                has_rows: flag(row, 4),
                deleted: number(row, 5)?,
            };
            Ok((number(row, 0)?, (leaf, flag(row, 6))))
        })
        .collect()
}

async fn differences(catalog: &mut Catalog, before: &BTreeMap<u32, Leaf>, now: &Leaves) -> Result<Vec<Told>> {
    let mut found = Vec::new();
    for (oid, old) in before {
        match now.get(oid) {
            None if old.has_rows => {
                let exists = catalog.value(&format!("SELECT count(*) FROM pg_class WHERE oid = {oid}")).await?;
                let how = if exists.as_deref() == Some("0") { "dropped" } else { "detached" };
                found.push(told(old, format!("its partition {} was {how}: its rows stay in the topic", old.name)));
            }
            Some((new, _)) if new.storage != old.storage && old.has_rows && !new.has_rows && new.deleted == old.deleted => {
                found.push(told(old, format!("its partition {} was truncated by itself: its rows stay in the topic", old.name)));
            }
            _ => {}
        }
    }
    let attached = now.iter().filter(|(oid, (leaf, attached))| !before.contains_key(oid) && *attached && leaf.has_rows);
    found.extend(attached.map(|(_, (leaf, _))| {
        told(leaf, format!("the partition {} was attached with rows: those that it had before are not in the topic", leaf.name))
    }));
    Ok(found)
}

fn told(leaf: &Leaf, what: String) -> Told {
    let hint = "Read the table again into its topic, or live with the difference; `headwater explain HW2056` has the ways.";
    Told { code: &codes::PARTITIONS_CHANGED, table: leaf.root.clone(), what, hint: hint.to_owned() }
}
