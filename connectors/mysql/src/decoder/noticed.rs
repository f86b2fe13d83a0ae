//! What the stream shows beside rows: tables that were opened and not changed, and tables that are gone.

use super::Decoder;
use crate::{drift::News, statement::Head};

impl Decoder {
    /// What was noticed since the last time.
    pub fn take_news(&mut self) -> Option<News> {
        if self.news.is_empty() { None } else { Some(std::mem::take(&mut self.news)) }
    }

    /// What could not be looked into comes again with the next news. Which tables are gone is known.
    pub fn give_back(&mut self, news: News) {
        news.bare.iter().for_each(|table| News::note(&mut self.news.bare, table));
        news.deleted.iter().for_each(|table| News::note(&mut self.news.deleted, table));
    }

    /// Rows of a table came; at the end of the statement those are left that it opened without changing a row. Their rows were perhaps
    /// changed by the storage engine alone.
    #[inline]
    pub(super) fn opened(&mut self, table: Option<u64>, is_end: bool) {
        if let Some(table) = table {
            self.mapped.retain(|mapped| *mapped != table);
        }
        if !is_end {
            return;
        }
        while let Some(id) = self.mapped.pop() {
            let Some(at) = self.tables.find(id) else { continue };
            if let Some(shape) = &self.tables.get(at).shape {
                News::note(&mut self.news.bare, &shape.schema.table);
            }
        }
    }

    /// Notes which selected tables are gone.
    pub(super) fn dropped(&mut self, head: &Head) {
        match head {
            Head::Drop(names) => {
                let selected: Vec<String> =
                    names.iter().filter(|name| self.selects(name)).map(|name| self.stored(name)).collect();
                selected.iter().for_each(|table| News::note(&mut self.news.dropped, table));
            }
            Head::DropDatabase(database) => {
                let Ok(database) = std::str::from_utf8(database) else { return };
                let is = |of: &str| of == database || self.folds && of.to_lowercase() == database.to_lowercase();
                for table in self.tables.names().filter(|name| name.split_once('.').is_some_and(|(of, _)| is(of))) {
                    News::note(&mut self.news.dropped, table);
                }
            }
            _ => {}
        }
    }
}
