//! Rows events: which table, which columns, and one row behind the other.

use headwater_connector::{Batch, Row, Value};

use crate::{
    binlog::kind,
    config::ZeroDates,
    decode::{self, Bad, Codec},
    patch,
    table_map::field,
    wire::{Cursor, Torn, bit},
};

/// Ids with which a server says that no table is meant, if none with such an id was described: the first is an ordinary one too.
pub const NO_TABLE: [u64; 3] = [0x00ff_ffff, 0xffff_ffff, 0xffff_ffff_ffff];

/// Whether an event with rows is the last of its statement.
#[inline]
pub fn ends_statement(body: &[u8]) -> bool {
    body.get(6).is_some_and(|flags| flags & 1 == 1)
}

/// What happened to the rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Insert,
    Update,
    Delete,
}

/// A rows event.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a> {
    pub table: u64,
    pub action: Action,
    /// Columns of the table, as the event counts them.
    pub columns: usize,
    /// Whether every row has a value for every column, before and after.
    pub is_full: bool,
    /// Which columns an image has; the first is the only one, or that of the row before.
    present: [&'a [u8]; 2],
    /// The rows; compressed if `is_compressed`.
    pub data: &'a [u8],
    pub is_compressed: bool,
    /// Documents behind an update may be differences to those before it.
    pub is_partial: bool,
}

impl<'a> Rows<'a> {
    /// Reads the head of the event.
    pub fn parse(event: u8, body: &'a [u8]) -> Result<Self, Torn> {
        let is_compressed = event >= kind::WRITE_ROWS_COMPRESSED_V1;
        let (first, has_extra) = match event {
            kind::WRITE_ROWS_V1..=kind::DELETE_ROWS_V1 => (kind::WRITE_ROWS_V1, false),
            kind::WRITE_ROWS..=kind::DELETE_ROWS => (kind::WRITE_ROWS, true),
            kind::WRITE_ROWS_COMPRESSED_V1..=kind::DELETE_ROWS_COMPRESSED_V1 => (kind::WRITE_ROWS_COMPRESSED_V1, false),
            kind::WRITE_ROWS_COMPRESSED..=kind::DELETE_ROWS_COMPRESSED => (kind::WRITE_ROWS_COMPRESSED, true),
            kind::PARTIAL_UPDATE_ROWS => (kind::PARTIAL_UPDATE_ROWS - 1, true),
            _ => return Err(Torn),
        };
        let is_partial = event == kind::PARTIAL_UPDATE_ROWS;
        let action = [Action::Insert, Action::Update, Action::Delete][usize::from(event - first)];
        let mut cursor = Cursor::new(body);
        let table = cursor.u48()?;
        cursor.u16()?;
        if has_extra {
            // The length counts itself.
            let extra = usize::from(cursor.u16()?).checked_sub(2).ok_or(Torn)?;
            cursor.take(extra)?;
        }
        let columns = cursor.count()?;
        let len = columns.div_ceil(8);
        let before = cursor.take(len)?;
        let after = if action == Action::Update { cursor.take(len)? } else { before };
        let all = |bitmap: &[u8]| (0..columns).all(|at| bit(bitmap, at));
        let is_full = all(before) && all(after);
        let rest = cursor.rest();
        Ok(Self { table, action, columns, is_full, present: [before, after], data: rest, is_compressed, is_partial })
    }

    /// Passes one row (both images of an update) of a table that nobody selected. No row is empty.
    pub fn skip(&self, fields: &[(u8, u16)], cursor: &mut Cursor<'_>) -> Result<(), Torn> {
        let left = cursor.rest().len();
        let images = if self.action == Action::Update { &self.present[..] } else { &self.present[..1] };
        for (image, present) in images.iter().enumerate() {
            if image == 1 && self.is_partial {
                partial_documents(fields, cursor)?;
            }
            let count = (0..fields.len()).filter(|at| bit(present, *at)).count();
            let nulls = cursor.take(count.div_ceil(8))?;
            let fields = fields.iter().enumerate().filter(|(at, _)| bit(present, *at));
            for (place, (_, (kind, meta))) in fields.enumerate() {
                if !bit(nulls, place) {
                    decode::take(*kind, *meta, cursor)?;
                }
            }
        }
        if cursor.rest().len() == left { Err(Torn) } else { Ok(()) }
    }
}

/// Why an image cannot be a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    Torn,
    /// The column that holds a date which is none.
    ZeroDate(usize),
}

impl From<Torn> for Fault {
    fn from(_: Torn) -> Self {
        Self::Torn
    }
}

/// In front of an image after an update: which of the table's documents are differences.
fn partial_documents<'a>(fields: &[(u8, u16)], cursor: &mut Cursor<'a>) -> Result<&'a [u8], Torn> {
    match cursor.number()? {
        0 => Ok(&[]),
        1 => cursor.take(fields.iter().filter(|(kind, _)| *kind == field::JSON).count().div_ceil(8)),
        // An option that is not known may mean anything.
        _ => Err(Torn),
    }
}

/// Appends the image after an update whose documents may be differences to those of the whole row `before`.
pub fn push_partial(
    batch: &mut Batch,
    fields: &[(u8, u16)],
    codecs: &[Codec],
    zero: ZeroDates,
    mut before: Cursor<'_>,
    cursor: &mut Cursor<'_>,
) -> Result<Row, Fault> {
    let partial = partial_documents(fields, cursor)?;
    let len = fields.len().div_ceil(8);
    let (nulls_before, nulls) = (before.take(len)?, cursor.take(len)?);
    let (start, mut documents) = (batch.begin_row(), 0);
    for (at, ((kind, meta), codec)) in fields.iter().zip(codecs).enumerate() {
        let is_partial = *kind == field::JSON && bit(partial, documents);
        documents += usize::from(*kind == field::JSON);
        let old = if bit(nulls_before, at) { None } else { Some(decode::take(*kind, *meta, &mut before)?) };
        if bit(nulls, at) {
            batch.push(Value::Null);
            continue;
        }
        let raw = decode::take(*kind, *meta, cursor)?;
        if is_partial {
            let old = old.ok_or(Torn)?;
            batch.push_json_with(|out| patch::push(out, old, raw))?;
            continue;
        }
        push_value(batch, codec, raw, zero, at)?;
    }
    Ok(batch.end_row(start))
}

#[inline]
fn push_value(batch: &mut Batch, codec: &Codec, raw: &[u8], zero: ZeroDates, at: usize) -> Result<(), Fault> {
    match decode::push(batch, codec, raw, zero) {
        Ok(()) => {}
        Err(Bad::Value) => batch.push(Value::Invalid(raw)),
        Err(Bad::ZeroDate) => return Err(Fault::ZeroDate(at)),
    }
    Ok(())
}

/// Appends one image of a full row.
#[inline]
pub fn push(
    batch: &mut Batch,
    fields: &[(u8, u16)],
    codecs: &[Codec],
    zero: ZeroDates,
    cursor: &mut Cursor<'_>,
) -> Result<Row, Fault> {
    let nulls = cursor.take(fields.len().div_ceil(8))?;
    let start = batch.begin_row();
    for (at, ((kind, meta), codec)) in fields.iter().zip(codecs).enumerate() {
        if bit(nulls, at) {
            batch.push(Value::Null);
            continue;
        }
        let raw = decode::take(*kind, *meta, cursor)?;
        push_value(batch, codec, raw, zero, at)?;
    }
    Ok(batch.end_row(start))
}
