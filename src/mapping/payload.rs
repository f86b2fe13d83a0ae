//! Values: the published columns of a row as one flat object.

use headwater_connector::{Batch, Error, Result, Row, Schema, Value, fault, json};

use super::{codes, route::ColumnChoice};
use crate::format::json::{Member, Pushed};

/// Writes the value of a row of one schema.
#[derive(Debug)]
pub struct PayloadWriter {
    /// By column of the source's schema; none is not published.
    members: Vec<Option<Member>>,
}

impl PayloadWriter {
    /// For the published columns of `schema`.
    pub fn new(schema: &Schema, columns: Option<&ColumnChoice>) -> Self {
        let published = |name: &str| columns.is_none_or(|choice| choice.takes(name));
        let member =
            |column: &headwater_connector::Column| published(&column.name).then(|| Member::new(&column.name, &column.r#type));
        Self { members: schema.columns.iter().map(member).collect() }
    }

    /// Appends the object. Returns whether columns are absent because the log does not carry them.
    pub fn write(&self, out: &mut Vec<u8>, batch: &Batch, schema: &Schema, row: Row) -> Result<bool> {
        let mut absent = false;
        out.push(b'{');
        let empty = out.len();
        for (index, (member, value)) in self.members.iter().zip(batch.values(row)).enumerate() {
            let Some(member) = member else { continue };
            let before = out.len();
            if before != empty {
                out.push(b',');
            }
            let null = value == Value::Unchanged && fault::variant("absent-as-null");
            match member.push(out, if null { Value::Null } else { value }) {
                Pushed::Written => {}
                Pushed::Absent => {
                    out.truncate(before);
                    absent = true;
                }
                Pushed::Invalid => {
                    return Err(Error::new(&codes::NOT_REPRESENTABLE, "a value cannot be represented")
                        .at("table", &schema.table)
                        .at("column", &schema.columns[index].name)
                        .hint("Correct the row, exclude the column, or set `events.on_data_error: dead_letter`."));
                }
            }
        }
        out.push(b'}');
        Ok(absent)
    }

    /// Appends the names of the absent columns as a JSON array, for the header `hw.absent`.
    pub fn write_absent(&self, out: &mut Vec<u8>, batch: &Batch, schema: &Schema, row: Row) {
        out.push(b'[');
        let empty = out.len();
        for (index, value) in batch.values(row).enumerate() {
            if value == Value::Unchanged && self.members[index].is_some() {
                if out.len() != empty {
                    out.push(b',');
                }
                json::push_string(out, &schema.columns[index].name);
            }
        }
        out.push(b']');
    }

    /// Appends what of the row can be written, for a dead letter.
    pub fn write_salvaged(&self, out: &mut Vec<u8>, batch: &Batch, row: Row) {
        out.push(b'{');
        let empty = out.len();
        for (member, value) in self.members.iter().zip(batch.values(row)) {
            let Some(member) = member else { continue };
            let before = out.len();
            if before != empty {
                out.push(b',');
            }
            if member.push(out, value) != Pushed::Written {
                out.truncate(before);
            }
        }
        out.push(b'}');
    }
}
