//! The statements that read a table in the order of its key. Only the server compares values of a key.

use headwater_connector::{ChunkRequest, Condition, Cursor, Error, Result, Schema};

use crate::{
    catalog::{TableFacts, charset_name},
    cells, codes,
    connection::ident,
    decode::Codec,
    error::protocol,
};

/// Rows that are looked at for each row that is wanted, where a condition may leave out most of them.
const LOOKED_AT: usize = 8;

/// A column of a key.
struct Part {
    column: String,
    /// The same, quoted.
    name: String,
    codec: Codec,
    charset: &'static str,
}

/// A table and its key.
pub struct Keyed {
    table: String,
    /// Quoted.
    from: String,
    parts: Vec<Part>,
    /// What to select for each column.
    columns: String,
    /// Names the index, so that no plan sorts the rest of the table for every chunk.
    index: String,
}

impl Keyed {
    /// Of a table as it is.
    pub fn of(facts: &TableFacts, schema: &Schema, codecs: &[Codec]) -> Result<Self> {
        let mut parts = Vec::with_capacity(schema.key.len());
        for at in &schema.key {
            parts.push(part(facts, schema, codecs, *at)?);
        }
        let columns = schema.columns.iter().zip(codecs).map(|(column, codec)| cells::expression(&column.name, codec));
        let names = schema.key_names();
        let fits = |index: &&(String, Vec<String>)| index.1.iter().map(String::as_str).eq(names.iter().copied());
        let index =
            facts.indexes.iter().find(fits).map_or_else(String::new, |(name, _)| format!(" FORCE INDEX ({})", ident(name)));
        Ok(Self {
            table: facts.full_name(),
            from: format!("{}.{}", ident(&facts.database), ident(&facts.name)),
            parts,
            columns: columns.collect::<Vec<_>>().join(", "),
            index,
        })
    }

    fn list(&self) -> String {
        self.parts.iter().map(|part| part.name.as_str()).collect::<Vec<_>>().join(", ")
    }

    /// At most so many rows of a request behind `after`, in key order; `until` stands over the request's.
    pub fn select(&self, request: &ChunkRequest, after: Option<&Cursor>, until: Option<&Cursor>, rows: usize) -> Result<String> {
        let mut conditions = self.range(after, until.or(request.until.as_ref()))?;
        if let Some(keys) = &request.keys {
            conditions.push(self.one_of(keys)?);
        }
        // A comment at the end of a condition would swallow the bracket.
        conditions.extend(request.filter.iter().map(|filter| format!("({filter}\n)")));
        let (columns, place) = (&self.columns, self.place(&conditions));
        Ok(format!("SELECT {columns} {place} ORDER BY {} LIMIT {rows}", self.list()))
    }

    /// The last key that a chunk with a condition looks at.
    pub fn horizon(&self, request: &ChunkRequest) -> Result<String> {
        let conditions = self.range(request.after.as_ref(), request.until.as_ref())?;
        let rows = request.max_rows.saturating_mul(LOOKED_AT);
        let place = self.place(&conditions);
        Ok(format!("SELECT {} {place} ORDER BY {} LIMIT 1 OFFSET {rows}", self.raw_keys(), self.list()))
    }

    /// The lowest and the highest value of the first column, if that is a whole number.
    pub fn extremes(&self) -> Option<String> {
        let first = self.parts.first().filter(|part| matches!(part.codec, Codec::Int | Codec::Uint))?;
        Some(format!("SELECT MIN({0}), MAX({0}) {1}", first.name, self.place(&[])))
    }

    /// The first key whose first column is at least a number.
    pub fn select_at_number(&self, number: i128) -> String {
        let first = self.parts.first().map_or("", |part| part.name.as_str());
        let place = self.place(&[format!("{first} >= {number}")]);
        format!("SELECT {} {place} ORDER BY {} LIMIT 1", self.raw_keys(), self.list())
    }

    /// The values of a key in the order of [`raw_keys`](Self::raw_keys) as a cursor.
    pub fn cursor(&self, cells: &[Option<Vec<u8>>]) -> Option<Cursor> {
        self.parts.iter().zip(cells).map(|(part, cell)| cells::cursor(&part.codec, cell.as_deref()?)).collect()
    }

    /// The key's columns in the form of a row's.
    fn raw_keys(&self) -> String {
        self.parts.iter().map(|part| cells::expression(&part.column, &part.codec)).collect::<Vec<_>>().join(", ")
    }

    fn place(&self, conditions: &[String]) -> String {
        let all = if conditions.is_empty() { String::new() } else { format!(" WHERE {}", conditions.join(" AND ")) };
        format!("FROM {}{}{all}", self.from, self.index)
    }

    fn range(&self, after: Option<&Cursor>, until: Option<&Cursor>) -> Result<Vec<String>> {
        let mut found = Vec::new();
        for (cursor, whole, strict) in [(after, ">", ">"), (until, "<=", "<")] {
            if let Some(cursor) = cursor {
                found.push(self.beyond(cursor, whole, strict)?);
            }
        }
        Ok(found)
    }

    /// Column by column: the servers find no range of an index in a comparison of rows. The first column is compared once more, for the index.
    fn beyond(&self, cursor: &Cursor, whole: &str, strict: &str) -> Result<String> {
        let one = |(part, text): (&Part, &String)| cells::value(&part.codec, part.charset, text);
        let values: Option<Vec<String>> = self.parts.iter().zip(cursor).map(one).collect();
        let values = values.filter(|values| values.len() == self.parts.len());
        let values = values.ok_or_else(|| protocol("a place in a table cannot be read").at("table", &self.table))?;
        let mut all = String::new();
        for (at, (Part { name, .. }, value)) in self.parts.iter().zip(&values).enumerate().rev() {
            all = match at + 1 == self.parts.len() {
                true => format!("{name} {whole} {value}"),
                false => format!("({name} {strict} {value} OR ({name} = {value} AND {all}))"),
            };
        }
        match (self.parts.first(), values.first()) {
            (Some(part), Some(value)) if self.parts.len() > 1 => Ok(format!("{} {strict}= {value} AND {all}", part.name)),
            _ => Ok(all),
        }
    }

    /// Rows with one of these keys, which are as the events have them.
    pub fn one_of(&self, keys: &[Cursor]) -> Result<String> {
        let mut found = Vec::with_capacity(keys.len());
        for key in keys {
            let values: Option<Vec<String>> =
                self.parts.iter().zip(key).map(|(part, text)| cells::told(&part.codec, text)).collect();
            let values = values.filter(|values| values.len() == self.parts.len());
            let values = values.ok_or_else(|| refused("a key does not fit the table's", &self.table))?;
            found.push(if self.parts.len() == 1 { values.join("") } else { format!("({})", values.join(", ")) });
        }
        let list = self.list();
        match (found.is_empty(), self.parts.len()) {
            (true, _) => Ok("FALSE".to_owned()),
            (false, 1) => Ok(format!("{list} IN ({})", found.join(", "))),
            (false, _) => Ok(format!("({list}) IN ({})", found.join(", "))),
        }
    }
}

fn part(facts: &TableFacts, schema: &Schema, codecs: &[Codec], at: usize) -> Result<Part> {
    let (Some(column), Some(codec)) = (schema.columns.get(at), codecs.get(at)) else {
        return Err(protocol("a key is not among the columns").at("table", facts.full_name()));
    };
    if matches!(codec, Codec::Json | Codec::JsonText(_) | Codec::Geometry | Codec::Vector) {
        return Err(Error::new(&codes::NO_USABLE_KEY, "a column of the key cannot be compared")
            .at("table", facts.full_name())
            .at("column", &column.name)
            .hint("Set `key:` for the table to columns that can be in an index."));
    }
    let collation = facts.column(&column.name).and_then(|facts| facts.column.collation).unwrap_or(63);
    Ok(Part { column: column.name.clone(), name: ident(&column.name), codec: codec.clone(), charset: charset_name(collation) })
}

/// What an operator asks for, as SQL.
pub fn condition(facts: &TableFacts, schema: &Schema, codecs: &[Codec], condition: &Condition<'_>) -> Result<String> {
    match condition {
        Condition::From { column, value } => {
            let at = schema.columns.iter().position(|known| known.name == *column);
            let at = at.ok_or_else(|| refused(&format!("the table has no column {column:?}"), &schema.table))?;
            let part = part(facts, schema, codecs, at)?;
            let value = cells::told(&part.codec, value);
            let value = value.ok_or_else(|| refused(&format!("the value is none of column {column:?}"), &schema.table))?;
            Ok(format!("{} >= {value}", part.name))
        }
        Condition::Keys(keys) => Keyed::of(facts, schema, codecs)?.one_of(keys),
    }
}

fn refused(what: &str, table: &str) -> Error {
    Error::new(&codes::CONDITION_REFUSED, what)
        .at("table", table)
        .hint("Write values as the table's events have them, and give the command again.")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keyed(codecs: &[Codec]) -> Keyed {
        let parts = ["`a`", "`b`", "`c`"].iter().zip(codecs);
        let parts = parts
            .map(|(name, codec)| Part { column: String::new(), name: (*name).into(), codec: codec.clone(), charset: "latin1" })
            .collect();
        Keyed { table: "d.t".into(), from: "t".into(), parts, columns: "*".into(), index: String::new() }
    }

    fn cursor(texts: &[&str]) -> Cursor {
        texts.iter().map(|text| (*text).to_owned()).collect()
    }

    #[test]
    fn a_place_is_compared_column_by_column() {
        let keyed = keyed(&[Codec::Int, Codec::Bytes, Codec::Uint]);
        let range = keyed.range(Some(&cursor(&["-1", "00ff", "3"])), Some(&cursor(&["4", "", "6"]))).unwrap();
        assert_eq!(range[0], "`a` >= -1 AND (`a` > -1 OR (`a` = -1 AND (`b` > x'00ff' OR (`b` = x'00ff' AND `c` > 3))))");
        assert_eq!(range[1], "`a` <= 4 AND (`a` < 4 OR (`a` = 4 AND (`b` < x'' OR (`b` = x'' AND `c` <= 6))))");
        assert!(keyed.range(Some(&cursor(&["1", "00"])), None).is_err(), "too few");
    }

    #[test]
    fn keys_are_listed() {
        assert_eq!(keyed(&[Codec::Int]).one_of(&[cursor(&["1"]), cursor(&["2"])]).unwrap(), "`a` IN (1, 2)");
        assert_eq!(keyed(&[Codec::Int, Codec::Uuid]).one_of(&[cursor(&["1", "u"])]).unwrap(), "(`a`, `b`) IN ((1, 'u'))");
        assert_eq!(keyed(&[Codec::Int]).one_of(&[]).unwrap(), "FALSE");
        let error = keyed(&[Codec::Int]).one_of(&[cursor(&["secret"])]).unwrap_err();
        assert_eq!(error.code().id, codes::CONDITION_REFUSED.id);
        assert!(!error.to_string().contains("secret"), "never a value in a message");
    }
}
