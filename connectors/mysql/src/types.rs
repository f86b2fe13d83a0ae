//! From a column of a TABLE_MAP to its logical type, the server's name of its type, and how its bytes are read.

use std::sync::Arc;

use headwater_connector::Type;

use crate::{
    charset::Charset,
    decode::Codec,
    table_map::{Column, field},
};

/// What TABLE_MAP cannot tell and the catalogue can.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hint {
    /// It is what it looks like.
    Plain,
    Uuid,
    Inet6,
    Inet4,
    /// LONGTEXT whose text is checked to be a document
    Json,
    /// Numbers, which MariaDB keeps as VARBINARY; MySQL has a type of its own for them.
    Vector,
}

/// What a column is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved {
    pub logical: Type,
    /// The server's own name of the type, with its modifiers.
    pub name: String,
    pub codec: Codec,
}

/// Why a column cannot be read: a fragment that names its type.
pub type Unknown = String;

/// utf8mb4_bin, which MariaDB gives to columns of type JSON.
const JSON_COLLATION: u64 = 46;

/// Whether the catalogue has to say what the column is. Only MariaDB has such columns.
pub fn is_ambiguous(column: &Column) -> bool {
    match column.field {
        // INET4, UUID and INET6 are BINARY(4) and BINARY(16); JSON is LONGTEXT of this collation.
        field::STRING => matches!(column.meta, 4 | 16) && is_binary(column),
        field::BLOB => column.meta == 4 && column.collation == Some(JSON_COLLATION),
        _ => false,
    }
}

/// Whether the catalogue may call the column a vector. It need not know: what is none any more comes as the bytes that it has.
pub fn may_be_vector(column: &Column) -> bool {
    column.field == field::VARCHAR && column.meta > 0 && column.meta.is_multiple_of(4) && is_binary(column)
}

/// Whether the column may say until when a row of a system-versioned table was true: by time or by transaction.
pub fn may_end_time(column: &Column) -> bool {
    matches!((column.field, column.meta), (field::TIMESTAMP2, 6)) || (column.field == field::LONGLONG && column.unsigned)
}

fn is_binary(column: &Column) -> bool {
    column.collation.and_then(Charset::of) == Some(Charset::Binary)
}

/// What a column is, with what the catalogue says if [`is_ambiguous`].
pub fn resolve(column: &Column, hint: Hint) -> Result<Resolved, Unknown> {
    match column.field {
        field::TINY | field::SHORT | field::INT24 | field::LONG | field::LONGLONG => Ok(integer(column)),
        field::FLOAT | field::DOUBLE | field::NEWDECIMAL | field::YEAR | field::BIT => number(column),
        field::DATE | field::NEWDATE | field::TIME | field::DATETIME | field::TIMESTAMP => old_temporal(column),
        field::TIME2 | field::DATETIME2 | field::TIMESTAMP2 => temporal(column),
        field::VARCHAR | field::VAR_STRING | field::STRING | field::BLOB => text(column, hint),
        field::ENUM | field::SET => list(column),
        field::JSON => Ok(resolved(Type::Json, "json", Codec::Json)),
        field::GEOMETRY => Ok(resolved(Type::Bytes, "geometry", Codec::Geometry)),
        field::VECTOR => Ok(vector()),
        field::COMPRESSED_BLOB | field::COMPRESSED_VARCHAR => Err("a COMPRESSED column".to_owned()),
        other => Err(format!("type {other}")),
    }
}

fn vector() -> Resolved {
    resolved(Type::Array(Box::new(Type::Float32)), "vector", Codec::Vector)
}

fn resolved(logical: Type, name: impl Into<String>, codec: Codec) -> Resolved {
    Resolved { logical, name: name.into(), codec }
}

fn integer(column: &Column) -> Resolved {
    let (name, signed, unsigned) = match column.field {
        field::TINY => ("tinyint", Type::Int8, Type::Uint8),
        field::SHORT => ("smallint", Type::Int16, Type::Uint16),
        field::INT24 => ("mediumint", Type::Int32, Type::Uint32),
        field::LONG => ("int", Type::Int32, Type::Uint32),
        _ => ("bigint", Type::Int64, Type::Uint64),
    };
    match column.unsigned {
        true => resolved(unsigned, format!("{name} unsigned"), Codec::Uint),
        false => resolved(signed, name, Codec::Int),
    }
}

fn number(column: &Column) -> Result<Resolved, Unknown> {
    let sign = if column.unsigned { " unsigned" } else { "" };
    let [high, low] = column.meta.to_be_bytes();
    Ok(match column.field {
        field::FLOAT => resolved(Type::Float32, format!("float{sign}"), Codec::Float),
        field::DOUBLE => resolved(Type::Float64, format!("double{sign}"), Codec::Double),
        field::NEWDECIMAL => {
            let logical = Type::Decimal { precision_scale: Some((high.into(), low.into())) };
            resolved(logical, format!("decimal({high},{low}){sign}"), Codec::Decimal { precision: high, scale: low })
        }
        field::YEAR => resolved(Type::Uint16, "year", Codec::Year),
        _ => match u16::from(high) * 8 + u16::from(low) {
            1 => resolved(Type::Boolean, "bit(1)", Codec::Bool),
            digits @ 2..=64 => resolved(Type::Other, format!("bit({digits})"), Codec::Bit(digits)),
            digits => return Err(format!("bit({digits})")),
        },
    })
}

/// As tables have them that were made before 5.6, and MariaDB's with `mysql56_temporal_format` off.
fn old_temporal(column: &Column) -> Result<Resolved, Unknown> {
    if column.meta > 0 {
        return Err(OLD_FRACTION.to_owned());
    }
    Ok(match column.field {
        field::TIME => resolved(Type::Time { digits: 0 }, "time", Codec::OldTime),
        field::DATETIME => resolved(Type::Timestamp { digits: 0 }, "datetime", Codec::OldDateTime),
        field::TIMESTAMP => resolved(Type::TimestampTz { digits: 0 }, "timestamp", Codec::OldTimestamp),
        _ => resolved(Type::Date, "date", Codec::Date),
    })
}

/// The binlog does not say how many digits there are, and so how many bytes.
pub const OLD_FRACTION: &str = "a time with a fraction, kept as before MariaDB 10.1";

/// Whether the binlog may lack the digits of a column, of which the catalogue knows.
pub fn may_lack_digits(column: &Column) -> bool {
    matches!(column.field, field::TIME | field::DATETIME | field::TIMESTAMP)
}

/// How many digits of a second the catalogue says that a column has.
pub fn digits(column: &Column) -> u16 {
    let has_digits = may_lack_digits(column) || matches!(column.field, field::TIME2 | field::DATETIME2 | field::TIMESTAMP2);
    if has_digits { column.meta } else { 0 }
}

fn temporal(column: &Column) -> Result<Resolved, Unknown> {
    let digits = column.meta as u8;
    let name = |name: &str| if digits == 0 { name.to_owned() } else { format!("{name}({digits})") };
    if column.meta > 6 {
        return Err(format!("a time with {} digits", column.meta));
    }
    Ok(match column.field {
        field::TIME2 => resolved(Type::Time { digits }, name("time"), Codec::Time(digits)),
        field::DATETIME2 => resolved(Type::Timestamp { digits }, name("datetime"), Codec::DateTime(digits)),
        _ => resolved(Type::TimestampTz { digits }, name("timestamp"), Codec::Timestamp(digits)),
    })
}

fn text(column: &Column, hint: Hint) -> Result<Resolved, Unknown> {
    match (hint, column.field) {
        (Hint::Uuid, field::STRING) => return Ok(resolved(Type::Uuid, "uuid", Codec::Uuid)),
        (Hint::Inet6, field::STRING) => return Ok(resolved(Type::Other, "inet6", Codec::Inet6)),
        (Hint::Vector, field::VARCHAR) => return Ok(vector()),
        (Hint::Inet4, field::STRING) => return Ok(resolved(Type::Other, "inet4", Codec::Inet4)),
        _ => {}
    }
    let collation = column.collation.ok_or("text of an unknown character set")?;
    let charset = Charset::of(collation).ok_or_else(|| format!("text with collation {collation}"))?;
    if hint == Hint::Json {
        return Ok(resolved(Type::Json, "json", Codec::JsonText(charset)));
    }
    let chars = usize::from(column.meta) / charset.width(collation);
    let is_binary = charset == Charset::Binary;
    let name = match (column.field, is_binary) {
        (field::BLOB, true) => {
            ["tinyblob", "blob", "mediumblob", "longblob"][usize::from(column.meta.clamp(1, 4)) - 1].to_owned()
        }
        (field::BLOB, false) => {
            ["tinytext", "text", "mediumtext", "longtext"][usize::from(column.meta.clamp(1, 4)) - 1].to_owned()
        }
        (field::STRING, true) => format!("binary({})", column.meta),
        (field::STRING, false) => format!("char({chars})"),
        (_, true) => format!("varbinary({})", column.meta),
        (_, false) => format!("varchar({chars})"),
    };
    Ok(match is_binary {
        true if column.field == field::STRING => resolved(Type::Bytes, name, Codec::Binary(column.meta)),
        true => resolved(Type::Bytes, name, Codec::Bytes),
        false => resolved(Type::String, name, Codec::Text(charset)),
    })
}

fn list(column: &Column) -> Result<Resolved, Unknown> {
    let charset = match column.collation {
        // MariaDB and MySQL leave the collation out where the label needs none.
        None => Charset::Utf8,
        Some(collation) => Charset::of(collation).ok_or_else(|| format!("labels with collation {collation}"))?,
    };
    let mut labels = Vec::with_capacity(column.labels.len());
    for label in &column.labels {
        let mut text = Vec::new();
        // The labels of a binary list are bytes that nearly always are text.
        let charset = if charset == Charset::Binary { Charset::Utf8 } else { charset };
        charset.decode(label, &mut text).map_err(|_| "a label that is not text")?;
        labels.push(String::from_utf8(text).map_err(|_| "a label that is not text")?);
    }
    let labels: Arc<[String]> = labels.into();
    let logical = Type::Enum { labels: Arc::clone(&labels) };
    Ok(match column.field {
        field::ENUM => resolved(logical, "enum", Codec::Enum(labels)),
        _ => resolved(Type::Array(Box::new(logical)), "set", Codec::Set(labels)),
    })
}
