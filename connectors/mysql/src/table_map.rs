//! TABLE_MAP: the table that rows belong to, as it was at that place of the binlog.

use crate::{
    connection::Flavour,
    wire::{Cursor, Torn, bit, bit_high_first},
};

/// A table has no more columns, on any server.
const MAX_COLUMNS: usize = 4096;
/// An enum has no more labels.
const MAX_LABELS: usize = 65_535;

/// Numbers of the columns' types.
pub mod field {
    pub const TINY: u8 = 1;
    pub const SHORT: u8 = 2;
    pub const LONG: u8 = 3;
    pub const FLOAT: u8 = 4;
    pub const DOUBLE: u8 = 5;
    pub const NULL: u8 = 6;
    pub const TIMESTAMP: u8 = 7;
    pub const LONGLONG: u8 = 8;
    pub const INT24: u8 = 9;
    pub const DATE: u8 = 10;
    pub const TIME: u8 = 11;
    pub const DATETIME: u8 = 12;
    pub const YEAR: u8 = 13;
    pub const NEWDATE: u8 = 14;
    pub const VARCHAR: u8 = 15;
    pub const BIT: u8 = 16;
    pub const TIMESTAMP2: u8 = 17;
    pub const DATETIME2: u8 = 18;
    pub const TIME2: u8 = 19;
    pub const COMPRESSED_BLOB: u8 = 140;
    pub const COMPRESSED_VARCHAR: u8 = 141;
    pub const VECTOR: u8 = 242;
    pub const JSON: u8 = 245;
    pub const NEWDECIMAL: u8 = 246;
    pub const ENUM: u8 = 247;
    pub const SET: u8 = 248;
    pub const BLOB: u8 = 252;
    pub const VAR_STRING: u8 = 253;
    pub const STRING: u8 = 254;
    pub const GEOMETRY: u8 = 255;
}

/// One column.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Column {
    /// See [`field`]; ENUM and SET by their own numbers, although the wire calls them STRING.
    pub field: u8,
    /// What the type has beside it: the low 16 bits mean what the type says.
    pub meta: u16,
    /// Whether it may be NULL.
    pub nullable: bool,
    /// Numbers only.
    pub unsigned: bool,
    /// The name; none if the server does not send it.
    pub name: Option<String>,
    /// Number of the collation; text, enums and sets only.
    pub collation: Option<u64>,
    /// Labels of an enum or a set, in the bytes of its character set.
    pub labels: Vec<Vec<u8>>,
    /// `INVISIBLE`
    pub invisible: bool,
}

impl Column {
    /// Whether the server says if it has a sign; it also says so of YEAR, which has none.
    fn has_sign_bit(&self) -> bool {
        use field::{DOUBLE, FLOAT, INT24, LONG, LONGLONG, NEWDECIMAL, SHORT, TINY, YEAR};
        matches!(self.field, TINY | SHORT | INT24 | LONG | LONGLONG | NEWDECIMAL | FLOAT | DOUBLE | YEAR)
    }

    /// Whether the server says which collation it has. That of what is no text means nothing, but it counts.
    fn has_collation(&self, flavour: Flavour) -> bool {
        use field::{BLOB, COMPRESSED_BLOB, COMPRESSED_VARCHAR, GEOMETRY, STRING, VAR_STRING, VARCHAR, VECTOR};
        match self.field {
            VARCHAR | VAR_STRING | STRING | BLOB => true,
            GEOMETRY | COMPRESSED_BLOB | COMPRESSED_VARCHAR => flavour == Flavour::Mariadb,
            VECTOR => flavour == Flavour::Mysql,
            _ => false,
        }
    }
}

/// A TABLE_MAP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableMap<'a> {
    /// Of this file only, until the next format description.
    pub id: u64,
    /// Database.
    pub database: &'a str,
    /// Table.
    pub table: &'a str,
    /// Everything behind the id and the flags, to tell a repetition from a change.
    pub raw: &'a [u8],
    /// In the order of the rows' values.
    pub columns: Vec<Column>,
    /// Places of the columns of the primary key, in its order; none if there is none or the server does not send it.
    pub primary_key: Option<Vec<usize>>,
}

/// The id alone, of a TABLE_MAP or of rows.
pub fn id(body: &[u8]) -> Result<u64, Torn> {
    Cursor::new(body).u48()
}

/// Database and table alone.
pub fn name(body: &[u8]) -> Result<(&str, &str), Torn> {
    let mut cursor = Cursor::new(body);
    cursor.take(8)?;
    Ok((short_text(&mut cursor)?, short_text(&mut cursor)?))
}

fn short_text<'a>(cursor: &mut Cursor<'a>) -> Result<&'a str, Torn> {
    let len = usize::from(cursor.u8()?);
    let text = std::str::from_utf8(cursor.take(len)?).map_err(|_| Torn)?;
    if cursor.u8()? == 0 { Ok(text) } else { Err(Torn) }
}

/// The types of the columns alone, and what stands beside each: all that passing its rows needs. What else is said of a table that nobody
/// selected cannot stop the stream.
pub fn fields(body: &[u8]) -> Result<Vec<(u8, u16)>, Torn> {
    Ok(TableMap::head(body)?.0.fields())
}

impl<'a> TableMap<'a> {
    /// Reads the body.
    pub fn parse(body: &'a [u8], flavour: Flavour) -> Result<Self, Torn> {
        let (mut map, mut cursor) = Self::head(body)?;
        while !cursor.is_empty() {
            let (kind, value) = (cursor.u8()?, cursor.bytes()?);
            map.optional(kind, value, flavour)?;
        }
        Ok(map)
    }

    /// What walking over the table's rows needs.
    pub fn fields(&self) -> Vec<(u8, u16)> {
        self.columns.iter().map(|column| (column.field, column.meta)).collect()
    }

    /// Everything in front of the optional metadata, and those.
    fn head(body: &'a [u8]) -> Result<(Self, Cursor<'a>), Torn> {
        let mut cursor = Cursor::new(body);
        let id = cursor.u48()?;
        cursor.u16()?;
        let raw = cursor.rest();
        let (database, table) = (short_text(&mut cursor)?, short_text(&mut cursor)?);
        let count = cursor.count()?;
        if count > MAX_COLUMNS {
            return Err(Torn);
        }
        let types = cursor.take(count)?;
        let mut metas = Cursor::new(cursor.bytes()?);
        let nullable = cursor.take(count.div_ceil(8))?;
        let mut columns = Vec::with_capacity(count);
        for (at, field) in types.iter().enumerate() {
            let (field, meta) = meta(*field, &mut metas)?;
            columns.push(Column { field, meta, nullable: bit(nullable, at), ..Column::default() });
        }
        Ok((Self { id, database, table, raw, columns, primary_key: None }, cursor))
    }

    fn optional(&mut self, kind: u8, value: &[u8], flavour: Flavour) -> Result<(), Torn> {
        let mut cursor = Cursor::new(value);
        match kind {
            1 => self.columns.iter_mut().filter(|column| column.has_sign_bit()).enumerate().for_each(|(at, column)| {
                column.unsigned = column.field != field::YEAR && bit_high_first(value, at);
            }),
            2 => default_collation(&mut cursor, self.columns.iter_mut().filter(|column| column.has_collation(flavour)))?,
            3 => collations(&mut cursor, self.columns.iter_mut().filter(|column| column.has_collation(flavour)))?,
            4 => {
                for column in &mut self.columns {
                    column.name = Some(String::from_utf8(cursor.bytes()?.to_vec()).map_err(|_| Torn)?);
                }
            }
            5 => labels(&mut cursor, self.columns.iter_mut().filter(|column| column.field == field::SET))?,
            6 => labels(&mut cursor, self.columns.iter_mut().filter(|column| column.field == field::ENUM))?,
            8 | 9 => {
                let mut key = Vec::new();
                while !cursor.is_empty() {
                    let at = cursor.count()?;
                    if at >= self.columns.len() || key.len() >= self.columns.len() {
                        return Err(Torn);
                    }
                    key.push(at);
                    if kind == 9 {
                        // How much of the column the index has; rows are told apart by the whole.
                        cursor.count()?;
                    }
                }
                self.primary_key = Some(key);
            }
            10 => default_collation(&mut cursor, self.columns.iter_mut().filter(|column| is_list(column)))?,
            11 => collations(&mut cursor, self.columns.iter_mut().filter(|column| is_list(column)))?,
            12 => self.columns.iter_mut().enumerate().for_each(|(at, column)| column.invisible = !bit_high_first(value, at)),
            // Kinds of geometries, dimensions of vectors, and what is not known yet say nothing about how rows are read.
            _ => {}
        }
        Ok(())
    }
}

fn is_list(column: &Column) -> bool {
    matches!(column.field, field::ENUM | field::SET)
}

fn default_collation<'c>(cursor: &mut Cursor<'_>, columns: impl Iterator<Item = &'c mut Column>) -> Result<(), Torn> {
    let default = cursor.number()?;
    let mut columns: Vec<&mut Column> = columns.collect();
    columns.iter_mut().for_each(|column| column.collation = Some(default));
    while !cursor.is_empty() {
        let at = cursor.count()?;
        columns.get_mut(at).ok_or(Torn)?.collation = Some(cursor.number()?);
    }
    Ok(())
}

fn collations<'c>(cursor: &mut Cursor<'_>, columns: impl Iterator<Item = &'c mut Column>) -> Result<(), Torn> {
    for column in columns {
        column.collation = Some(cursor.number()?);
    }
    Ok(())
}

fn labels<'c>(cursor: &mut Cursor<'_>, columns: impl Iterator<Item = &'c mut Column>) -> Result<(), Torn> {
    for column in columns {
        let count = cursor.count()?;
        if count > MAX_LABELS {
            return Err(Torn);
        }
        for _ in 0..count {
            column.labels.push(cursor.bytes()?.to_vec());
        }
    }
    Ok(())
}

/// The real type of a column and what stands beside it.
fn meta(field: u8, metas: &mut Cursor<'_>) -> Result<(u8, u16), Torn> {
    use field::{
        BIT, BLOB, COMPRESSED_BLOB, COMPRESSED_VARCHAR, DATETIME2, DOUBLE, ENUM, FLOAT, GEOMETRY, JSON, NEWDECIMAL, SET, STRING,
        TIME2, TIMESTAMP2, VAR_STRING, VARCHAR, VECTOR,
    };
    Ok(match field {
        FLOAT | DOUBLE | BLOB | GEOMETRY | JSON | VECTOR | TIMESTAMP2 | DATETIME2 | TIME2 => (field, metas.u8()?.into()),
        VARCHAR | VAR_STRING | BIT => (field, metas.u16()?),
        // Total digits in the high byte, those behind the point in the low one.
        NEWDECIMAL => (field, u16::from_be_bytes(metas.array()?)),
        STRING | ENUM | SET => {
            let [real, len] = metas.array::<2>()?;
            match real {
                // Lengths beyond 255 hide their high bits, inverted, in the type.
                _ if real & 0x30 != 0x30 => (STRING, u16::from(len) | u16::from((real & 0x30) ^ 0x30) << 4),
                ENUM | SET | STRING => (real, len.into()),
                _ => return Err(Torn),
            }
        }
        // MariaDB's compressed columns; whoever reads their rows refuses them.
        COMPRESSED_BLOB => (field, metas.u8()?.into()),
        COMPRESSED_VARCHAR => (field, metas.u16()?),
        _ => (field, 0),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_long_char_column_keeps_its_length() {
        // CHAR(255) in utf8mb4 has 1020 bytes.
        let mut metas = Cursor::new(&[0xfe ^ 0x30, 0xfc]);
        assert_eq!(meta(field::STRING, &mut metas), Ok((field::STRING, 1020)));
        let mut metas = Cursor::new(&[field::ENUM, 1]);
        assert_eq!(meta(field::STRING, &mut metas), Ok((field::ENUM, 1)));
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_table_or_refused(body: Vec<u8>) {
            for flavour in [Flavour::Mysql, Flavour::Mariadb] {
                let _ = (TableMap::parse(&body, flavour).is_ok(), fields(&body), name(&body), id(&body));
            }
        }

        #[test]
        fn any_optional_metadata_is_read_or_refused(types in "[\\x01-\\x13]{1,9}", rest: Vec<u8>) {
            let mut body = vec![7, 0, 0, 0, 0, 0, 1, 0, 1, b'd', 0, 1, b't', 0, types.len() as u8];
            body.extend_from_slice(types.as_bytes());
            body.push(24);
            body.extend_from_slice(&[2; 24]);
            body.extend_from_slice(&vec![0; types.len().div_ceil(8)]);
            body.extend_from_slice(&rest);
            if let Ok(map) = TableMap::parse(&body, Flavour::Mysql) {
                prop_assert_eq!(map.columns.len(), types.len());
            }
        }
    }
}
