//! Bytes of no server's making, through every decoder of values: whatever the columns are said to be, an answer or a refusal comes, and
//! nothing is held that did not come.

use headwater_connector::{Batch, Cursor as Key};
use proptest::{collection::vec, prelude::*};

use crate::{
    cells,
    config::ZeroDates,
    decode::{self, Codec},
    rows::{self, Rows},
    table_map::{Column, field},
    types::{self, Hint},
    wire::Cursor,
};

const FIELDS: [u8; 30] = [
    field::TINY,
    field::SHORT,
    field::INT24,
    field::LONG,
    field::LONGLONG,
    field::FLOAT,
    field::DOUBLE,
    field::NEWDECIMAL,
    field::YEAR,
    field::BIT,
    field::DATE,
    field::NEWDATE,
    field::TIME,
    field::DATETIME,
    field::TIMESTAMP,
    field::TIME2,
    field::DATETIME2,
    field::TIMESTAMP2,
    field::VARCHAR,
    field::VAR_STRING,
    field::STRING,
    field::STRING,
    field::BLOB,
    field::BLOB,
    field::ENUM,
    field::SET,
    field::JSON,
    field::GEOMETRY,
    field::VECTOR,
    200,
];
const HINTS: [Hint; 6] = [Hint::Plain, Hint::Json, Hint::Uuid, Hint::Inet6, Hint::Inet4, Hint::Vector];
const ZERO: [ZeroDates; 3] = [ZeroDates::Text, ZeroDates::Null, ZeroDates::Stop];
/// Some of each way in which text is read.
const COLLATIONS: [u64; 12] = [8, 28, 33, 35, 45, 46, 54, 56, 60, 63, 13, 9999];

prop_compose! {
    fn column()(kind in 0..FIELDS.len(), meta in prop_oneof![0_u16..20, any::<u16>()], unsigned: bool, collation in 0..COLLATIONS.len(),
                labels in vec(vec(any::<u8>(), 0..5), 0..4), hint in 0..HINTS.len()) -> (Column, Hint) {
        let collation = Some(COLLATIONS[collation]);
        let name = Some("c".to_owned());
        (Column { field: FIELDS[kind], meta, unsigned, collation, labels, name, ..Column::default() }, HINTS[hint])
    }
}

/// Those of the columns that can be read.
fn readable(columns: Vec<(Column, Hint)>) -> (Vec<(u8, u16)>, Vec<Codec>) {
    let codecs = |(column, hint): &(Column, Hint)| {
        types::resolve(column, *hint).ok().map(|resolved| ((column.field, column.meta), resolved.codec))
    };
    columns.iter().filter_map(codecs).unzip()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, ..ProptestConfig::default() })]

    #[test]
    fn any_row_is_read_or_refused(columns in vec(column(), 1..6), body in vec(any::<u8>(), 0..200), zero in 0..3_usize) {
        let (fields, codecs) = readable(columns);
        let mut batch = Batch::default();
        let _ = rows::push(&mut batch, &fields, &codecs, ZERO[zero], &mut Cursor::new(&body));
        // The text of a value is longer than its bytes, by a factor that is known for each type: 64 digits for 8 bytes of bits.
        prop_assert!(batch.size_bytes() < 1 << 20, "{}", batch.size_bytes());
    }

    #[test]
    fn any_difference_to_a_row_is_read_or_refused(
        columns in vec(column(), 1..6), before in vec(any::<u8>(), 0..200), body in vec(any::<u8>(), 0..200)
    ) {
        let (fields, codecs) = readable(columns);
        let mut batch = Batch::default();
        let _ = rows::push_partial(&mut batch, &fields, &codecs, ZERO[0], Cursor::new(&before), &mut Cursor::new(&body));
        prop_assert!(batch.size_bytes() < 1 << 20, "{}", batch.size_bytes());
    }

    #[test]
    fn any_value_is_read_or_refused((column, hint) in column(), raw in vec(any::<u8>(), 0..100), zero in 0..3_usize) {
        let _ = decode::take(column.field, column.meta, &mut Cursor::new(&raw));
        if let Ok(resolved) = types::resolve(&column, hint) {
            let mut batch = Batch::default();
            let start = batch.begin_row();
            let _ = decode::push(&mut batch, &resolved.codec, &raw, ZERO[zero]);
            let row = batch.end_row(start);
            // What was taken can be looked at.
            prop_assert!(batch.values(row).count() <= 1);
        }
    }

    #[test]
    fn any_cell_of_an_answer_is_read_or_refused((column, hint) in column(), cell in prop_oneof![
        vec(any::<u8>(), 0..60), "[-0-9:. ]{0,30}".prop_map(String::into_bytes), ".{0,20}".prop_map(String::into_bytes),
    ], zero in 0..3_usize) {
        if let Ok(resolved) = types::resolve(&column, hint) {
            let codec = &resolved.codec;
            let _ = cells::push(&mut Batch::default(), codec, &cell, ZERO[zero]);
            // A place that a chunk ended at is a value again, and nothing else gets into a statement.
            let key: Option<Key> = cells::cursor(codec, &cell).map(|text| vec![text]);
            if let Some(key) = key {
                let _ = cells::value(codec, "utf8mb4", &key[0]);
                if let Some(told) = cells::told(codec, &key[0]) {
                    prop_assert!(is_one_literal(&told), "{told}");
                }
            }
        }
    }

    #[test]
    fn any_event_of_rows_is_read_or_refused(kind: u8, body in vec(any::<u8>(), 0..100), columns in vec(column(), 1..4)) {
        if let Ok(rows) = Rows::parse(kind, &body) {
            let (fields, _) = readable(columns);
            let mut cursor = Cursor::new(rows.data);
            // Whoever passes rows goes on as the decoder does, so this must end by itself.
            while !cursor.is_empty() && rows.skip(&fields, &mut cursor).is_ok() {}
        }
    }
}

/// A number, or a text in quotes with every quote and backslash in it doubled.
fn is_one_literal(sql: &str) -> bool {
    match sql.strip_prefix('\'').and_then(|rest| rest.strip_suffix('\'')) {
        Some(inside) => !inside.replace("''", "").replace("\\\\", "").contains(['\'', '\\']),
        None => !sql.is_empty() && sql.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-+.".contains(&byte)),
    }
}
