//! Keys: compact JSON of the key columns in key order.

use headwater_connector::{Batch, Error, Result, Row, Schema, Value};

use super::codes;
use crate::format::json::{Member, Pushed};

/// Writes the key of a row of one schema.
#[derive(Debug)]
pub struct KeyWriter {
    members: Vec<(usize, Member)>,
}

impl KeyWriter {
    /// For the key of `schema`.
    pub fn new(schema: &Schema) -> Self {
        let member = |index: &usize| {
            let column = &schema.columns[*index];
            (*index, Member::new(&column.name, &column.r#type))
        };
        Self { members: schema.key.iter().map(member).collect() }
    }

    /// Appends the key of `row`. A key column without a value is a Data error: such a row has no identity.
    pub fn write(&self, out: &mut Vec<u8>, batch: &Batch, schema: &Schema, row: Row) -> Result<()> {
        if self.members.is_empty() {
            return Err(no_key(schema, "the table has no key"));
        }
        for (at, (index, member)) in self.members.iter().enumerate() {
            out.push(if at == 0 { b'{' } else { b',' });
            let value = batch.value(row, *index);
            if value == Value::Null || member.push(out, value) != Pushed::Written {
                let column = &schema.columns[*index].name;
                return Err(no_key(schema, "a key column has no usable value").at("column", column));
            }
        }
        out.push(b'}');
        Ok(())
    }
}

/// The error of a row without a usable key.
pub fn no_key(schema: &Schema, what: &str) -> Error {
    Error::new(&codes::NO_KEY, what)
        .at("table", &schema.table)
        .hint("Make the key columns NOT NULL (on PostgreSQL also part of the replica identity), or set `events.on_data_error: dead_letter`.")
}
