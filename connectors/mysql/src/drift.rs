//! Where the topics differ from the tables although the stream goes on.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use headwater_connector::{Code, Error, Result};

use crate::{
    catalog::cell,
    check, codes,
    config::Settings,
    connection::{Connection, ident, literal},
    gtid::Gtid,
};

/// A table is asked for its foreign keys at most this often; they can be added while the stream runs.
const ASK_EVERY: Duration = Duration::from_secs(60);

/// What is prepared is committed in a moment, unless whoever did it has died.
const LONG_PREPARED: Duration = Duration::from_secs(3600);

/// What the decoder noticed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct News {
    /// Selected tables that a statement opened without changing a row of them, as far as the binlog tells.
    pub bare: Vec<String>,
    /// Tables of which rows were deleted, selected or not.
    pub deleted: Vec<String>,
    /// Selected tables that were dropped.
    pub dropped: Vec<String>,
}

impl News {
    /// Notes a table once.
    pub fn note(list: &mut Vec<String>, table: &str) {
        if !list.iter().any(|known| known == table) {
            list.push(table.to_owned());
        }
    }

    /// Whether nothing was noticed.
    pub fn is_empty(&self) -> bool {
        self.bare.is_empty() && self.deleted.is_empty() && self.dropped.is_empty()
    }
}

type Told = BTreeMap<(String, &'static str), (&'static Code, String, String)>;

/// What is told of tables, for the source that finds it and the monitor that shows it.
#[derive(Clone, Default)]
pub struct Drift {
    told: Arc<Mutex<Told>>,
    asked: BTreeMap<String, Instant>,
}

impl Drift {
    /// Everything that was found since the daemon began.
    pub fn findings(&self) -> Vec<Error> {
        let told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let finding = |((table, _), (code, what, hint)): (&(String, &str), &(&'static Code, String, String))| {
            let error = Error::new(code, what).hint(hint);
            if table.is_empty() { error } else { error.at("table", table) }
        };
        told.iter().map(finding).collect()
    }

    fn tell(&self, table: &str, code: &'static Code, what: String, hint: String) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.insert((table.to_owned(), code.id), (code, what.clone(), hint)).is_none() {
            tracing::warn!(code = code.id, table, "{what}");
        }
    }

    /// A table has rows again.
    pub fn came_back(&self, table: &str) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        told.remove(&(table.to_owned(), codes::DROPPED.id));
    }

    /// A table was dropped.
    pub fn dropped(&self, table: &str) {
        self.tell(
            table,
            &codes::DROPPED,
            "a selected table was dropped; its last rows stay in the topic".to_owned(),
            "Take the table out of `tables`, or create it again; `headwater explain HW3042` has more.".to_owned(),
        );
    }

    /// What is prepared for so long that somebody has forgotten it, or nothing any more.
    pub fn waits(&self, oldest: Option<(Gtid, u32)>) {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let forgotten = oldest.filter(|(_, since)| now.saturating_sub(Duration::from_secs((*since).into())) > LONG_PREPARED);
        match forgotten {
            Some((gtid, _)) => self.tell(
                "",
                &codes::PREPARED_LONG,
                format!("transaction {gtid} is prepared for more than an hour and neither committed nor rolled back"),
                "Run XA COMMIT or XA ROLLBACK for what XA RECOVER; lists: a restart has to read on from there.".to_owned(),
            ),
            None => {
                let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
                told.remove(&(String::new(), codes::PREPARED_LONG.id));
            }
        }
    }

    /// Whether it is time to ask for a table's foreign keys.
    pub fn is_due(&self, table: &str) -> bool {
        self.asked.get(table).is_none_or(|asked| asked.elapsed() >= ASK_EVERY)
    }

    /// They were asked for.
    pub fn asked(&mut self, table: &str) {
        self.asked.insert(table.to_owned(), Instant::now());
    }

    /// A table was opened without a row: if it has a foreign key that changes rows, the server may have changed some and not said so.
    pub async fn judge(&self, connection: &mut Connection, table: &str) -> Result<()> {
        let Some((database, name)) = table.split_once('.') else { return Ok(()) };
        if check::logs_cascades(connection).await? {
            return Ok(());
        }
        let quoted = format!("{}.{}", ident(database), ident(name));
        // A table that is gone by now has nothing to repair.
        let Ok(rows) = connection.try_query(&format!("SHOW CREATE TABLE {quoted}")).await? else { return Ok(()) };
        let text = rows.first().map_or("", |row| cell(row, 1));
        if let Some((key, rule)) = text.lines().filter_map(check::cascade).next() {
            self.may_have_changed(table, &key, &rule);
        }
        Ok(())
    }

    /// Rows of a table were deleted: the server may have changed rows of selected tables below it, at any depth, and not said so.
    pub async fn judge_below(&self, connection: &mut Connection, settings: &Settings, table: &str) -> Result<()> {
        if check::logs_cascades(connection).await? {
            return Ok(());
        }
        let mut tables = vec![table.to_owned()];
        let mut next = 0;
        while let Some(parent) = tables.get(next).cloned() {
            next += 1;
            let Some((database, name)) = parent.split_once('.') else { continue };
            let rows = connection
                .query(&format!(
                    "SELECT CONSTRAINT_SCHEMA, TABLE_NAME, CONSTRAINT_NAME, DELETE_RULE FROM information_schema.REFERENTIAL_CONSTRAINTS
                     WHERE UNIQUE_CONSTRAINT_SCHEMA = {} AND REFERENCED_TABLE_NAME = {} AND DELETE_RULE IN ('CASCADE', 'SET NULL')",
                    literal(database),
                    literal(name)
                ))
                .await?;
            for row in &rows {
                let (child, rule) = (format!("{}.{}", cell(row, 0), cell(row, 1)), cell(row, 3));
                if settings.selects(cell(row, 0), cell(row, 1)) {
                    self.may_have_changed(&child, cell(row, 2), &format!("ON DELETE {rule}"));
                }
                if rule == "CASCADE" && !tables.contains(&child) {
                    tables.push(child);
                }
            }
        }
        Ok(())
    }

    fn may_have_changed(&self, table: &str, key: &str, rule: &str) {
        self.tell(
            table,
            &codes::CASCADES,
            format!("foreign key {key} may have changed rows without a trace in the binlog ({rule})"),
            "Change the rows in the application instead (ON DELETE RESTRICT); `headwater explain HW3035` has more.".to_owned(),
        );
    }
}
