//! Row schemas: shared, immutable, fingerprinted.

use std::{fmt, sync::Arc};

use serde_json::{Map, Value as Json, json};
use sha2::{Digest, Sha256};

/// The logical type of a column. The set is closed; what does not fit is [`Type::Other`] and travels as its exact text.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Type {
    /// true or false
    Boolean,
    /// 8 bit signed
    Int8,
    /// 16 bit signed
    Int16,
    /// 32 bit signed
    Int32,
    /// 64 bit signed
    Int64,
    /// 8 bit unsigned
    Uint8,
    /// 16 bit unsigned
    Uint16,
    /// 32 bit unsigned
    Uint32,
    /// 64 bit unsigned
    Uint64,
    /// IEEE 754 single
    Float32,
    /// IEEE 754 double
    Float64,
    /// Exact decimal; precision and scale where the column declares them.
    Decimal {
        /// Total digits and digits behind the point.
        precision_scale: Option<(u16, i16)>,
    },
    /// UTF-8 text
    String,
    /// Raw bytes
    Bytes,
    /// Calendar date, ISO 8601
    Date,
    /// Time of day; `digits` of the fraction of a second
    Time {
        /// Digits of the fraction of a second, 0 to 9.
        digits: u8,
    },
    /// Date and time without a zone
    Timestamp {
        /// Digits of the fraction of a second, 0 to 9.
        digits: u8,
    },
    /// An instant, always in UTC
    TimestampTz {
        /// Digits of the fraction of a second, 0 to 9.
        digits: u8,
    },
    /// A span of time in the source's text
    Interval,
    /// RFC 9562 text
    Uuid,
    /// A JSON document
    Json,
    /// One of the labels
    Enum {
        /// Labels in the order of their declaration.
        labels: Arc<[String]>,
    },
    /// A list of values of one type, possibly nested
    Array(Box<Type>),
    /// Anything else, as its exact text; `source_type` of the column says what it is.
    Other,
}

impl Type {
    /// The word of the closed set.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Boolean => "boolean",
            Self::Int8 => "int8",
            Self::Int16 => "int16",
            Self::Int32 => "int32",
            Self::Int64 => "int64",
            Self::Uint8 => "uint8",
            Self::Uint16 => "uint16",
            Self::Uint32 => "uint32",
            Self::Uint64 => "uint64",
            Self::Float32 => "float32",
            Self::Float64 => "float64",
            Self::Decimal { .. } => "decimal",
            Self::String => "string",
            Self::Bytes => "bytes",
            Self::Date => "date",
            Self::Time { .. } => "time",
            Self::Timestamp { .. } => "timestamp",
            Self::TimestampTz { .. } => "timestamptz",
            Self::Interval => "interval",
            Self::Uuid => "uuid",
            Self::Json => "json",
            Self::Enum { .. } => "enum",
            Self::Array(_) => "array",
            Self::Other => "other",
        }
    }

    /// Adds `type` and what belongs to it: `precision` and `scale`, `digits`, `labels`, or `items`.
    fn describe(&self, object: &mut Map<String, Json>) {
        object.insert("type".into(), self.name().into());
        match self {
            Self::Decimal { precision_scale: Some((precision, scale)) } => {
                object.insert("precision".into(), (*precision).into());
                object.insert("scale".into(), (*scale).into());
            }
            Self::Time { digits } | Self::Timestamp { digits } | Self::TimestampTz { digits } => {
                object.insert("digits".into(), (*digits).into());
            }
            Self::Enum { labels } => {
                object.insert("labels".into(), json!(&**labels));
            }
            Self::Array(items) => {
                let mut inner = Map::new();
                items.describe(&mut inner);
                object.insert("items".into(), Json::Object(inner));
            }
            _ => {}
        }
    }
}

/// One column.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column {
    /// The name as the source spells it.
    pub name: String,
    /// The logical type.
    pub r#type: Type,
    /// The source's own name of the type, with its modifiers.
    pub source_type: String,
    /// Advisory outside the key: logs do not carry it.
    pub nullable: bool,
}

impl Column {
    /// The column as it stands in a schema record; without `nullable` for the fingerprint.
    fn describe(&self, with_nullable: bool) -> Json {
        let mut object = Map::new();
        object.insert("name".into(), self.name.as_str().into());
        self.r#type.describe(&mut object);
        object.insert("source_type".into(), self.source_type.as_str().into());
        if with_nullable {
            object.insert("nullable".into(), self.nullable.into());
        }
        Json::Object(object)
    }
}

/// The shape of the rows of one table at one place of the log.
///
/// A source makes one `Arc<Schema>` per version of a table and uses the same `Arc` for every change of that version;
/// the daemon keys its caches by the pointer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schema {
    /// `schema.table` or `database.table`, unquoted.
    pub table: String,
    /// Columns in the order of the rows' cells.
    pub columns: Vec<Column>,
    /// Indices into `columns` of the key that the source found, in key order; empty if there is none.
    pub key: Vec<usize>,
}

/// First 64 bits of a SHA-256, for telling schemas apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Fingerprint(pub u64);

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl Schema {
    /// The index of a column.
    pub fn column(&self, name: &str) -> Option<usize> {
        self.columns.iter().position(|column| column.name == name)
    }

    /// The names of the key columns, in key order.
    pub fn key_names(&self) -> Vec<&str> {
        self.key.iter().filter_map(|index| self.columns.get(*index)).map(|column| column.name.as_str()).collect()
    }

    /// Differs whenever table, entity, key, or a column's name, place or type differs. Nullability is not part of it.
    pub fn fingerprint(&self, entity: &str) -> Fingerprint {
        let columns: Vec<Json> = self.columns.iter().map(|column| column.describe(false)).collect();
        let text = json!([self.table, entity, self.key_names(), columns]).to_string();
        let digest = Sha256::digest(text.as_bytes());
        let mut first = [0; 8];
        first.copy_from_slice(&digest[..8]);
        Fingerprint(u64::from_be_bytes(first))
    }

    /// The value of the schema record: `{"schema":…,"connector":…,"entity":…,"table":…,"key":[…],"columns":[…]}`.
    pub fn record(&self, connector: &str, entity: &str) -> Json {
        json!({
            "schema": self.fingerprint(entity).to_string(),
            "connector": connector,
            "entity": entity,
            "table": self.table,
            "key": self.key_names(),
            "columns": self.columns.iter().map(|column| column.describe(true)).collect::<Vec<_>>(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn orders() -> Schema {
        let column = |name: &str, r#type| Column { name: name.into(), r#type, source_type: "x".into(), nullable: false };
        Schema {
            table: "public.orders".into(),
            columns: vec![
                column("id", Type::Int64),
                column("total", Type::Decimal { precision_scale: Some((10, 2)) }),
                column("tags", Type::Array(Box::new(Type::String))),
            ],
            key: vec![0],
        }
    }

    #[test]
    fn the_fingerprint_ignores_nullability_and_nothing_else() {
        let base = orders().fingerprint("order");
        let change = |edit: fn(&mut Schema)| {
            let mut schema = orders();
            edit(&mut schema);
            schema.fingerprint("order")
        };
        assert_eq!(base, change(|schema| schema.columns[1].nullable = true));
        assert_ne!(base, change(|schema| schema.table.push('x')));
        assert_ne!(base, change(|schema| schema.columns[0].name.push('x')));
        assert_ne!(base, change(|schema| schema.columns[0].r#type = Type::Int32));
        assert_ne!(base, change(|schema| schema.columns[1].r#type = Type::Decimal { precision_scale: Some((10, 3)) }));
        assert_ne!(base, change(|schema| schema.columns.swap(0, 1)));
        assert_ne!(base, change(|schema| schema.key.clear()));
        assert_ne!(base, orders().fingerprint("purchase"));
    }

    #[test]
    fn a_schema_record_spells_types_as_the_closed_set() {
        let record = orders().record("shop", "order");
        assert_eq!(record["columns"][1]["type"], "decimal");
        assert_eq!(record["columns"][1]["scale"], 2);
        assert_eq!(record["columns"][2]["items"]["type"], "string");
        assert_eq!(record["key"][0], "id");
    }
}
