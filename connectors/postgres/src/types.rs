//! From the server's types to logical types. Built-in ones by their object id, which never changes; others by name and
//! kind from the catalogue (`catalog.rs`).

use headwater_connector::Type;

use crate::decode::Codec;

/// What a type means to us.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved {
    /// The logical type.
    pub logical: Type,
    /// How its text is read.
    pub codec: Codec,
    /// What `format_type` says.
    pub name: String,
}

impl Resolved {
    /// A type that travels as its exact text.
    pub fn other(name: impl Into<String>) -> Self {
        Self { logical: Type::Other, codec: Codec::Text, name: name.into() }
    }

    /// A list of this type.
    pub fn array(self, delimiter: u8) -> Self {
        Self {
            logical: Type::Array(Box::new(self.logical)),
            codec: Codec::Array(Box::new(self.codec), delimiter),
            name: format!("{}[]", self.name),
        }
    }
}

/// Object ids of an element type and of its array.
const ARRAYS: [(u32, u32); 34] = [
    (16, 1000),
    (17, 1001),
    (18, 1002),
    (19, 1003),
    (20, 1016),
    (21, 1005),
    (23, 1007),
    (25, 1009),
    (26, 1028),
    (114, 199),
    (142, 143),
    (600, 1017),
    (650, 651),
    (700, 1021),
    (701, 1022),
    (790, 791),
    (829, 1040),
    (869, 1041),
    (1042, 1014),
    (1043, 1015),
    (1082, 1182),
    (1083, 1183),
    (1114, 1115),
    (1184, 1185),
    (1186, 1187),
    (1266, 1270),
    (1560, 1561),
    (1562, 1563),
    (1700, 1231),
    (2950, 2951),
    (3614, 3643),
    (3802, 3807),
    (3904, 3905),
    (3910, 3911),
];

/// A built-in type with its modifier; none if it must be asked for.
pub fn builtin(oid: u32, modifier: i32) -> Option<Resolved> {
    if let Some(resolved) = scalar(oid, modifier) {
        return Some(resolved);
    }
    let (element, _) = ARRAYS.iter().find(|(_, array)| *array == oid)?;
    scalar(*element, modifier).map(|element| element.array(b','))
}

fn scalar(oid: u32, modifier: i32) -> Option<Resolved> {
    let made = |logical, codec, name: &str| Some(Resolved { logical, codec, name: name.to_owned() });
    match oid {
        16 => made(Type::Boolean, Codec::Bool, "boolean"),
        17 => made(Type::Bytes, Codec::Bytea, "bytea"),
        18 => made(Type::String, Codec::Text, "\"char\""),
        19 => made(Type::String, Codec::Text, "name"),
        20 => made(Type::Int64, Codec::Integer, "bigint"),
        21 => made(Type::Int16, Codec::Integer, "smallint"),
        23 => made(Type::Int32, Codec::Integer, "integer"),
        25 => made(Type::String, Codec::Text, "text"),
        26 => made(Type::Uint32, Codec::Integer, "oid"),
        114 => made(Type::Json, Codec::Json, "json"),
        3802 => made(Type::Json, Codec::Json, "jsonb"),
        700 => made(Type::Float32, Codec::Float, "real"),
        701 => made(Type::Float64, Codec::Float, "double precision"),
        1042 if modifier < 4 => made(Type::String, Codec::Text, "bpchar"),
        1042 => made(Type::String, Codec::Text, &format!("character({})", modifier - 4)),
        1043 if modifier < 4 => made(Type::String, Codec::Text, "character varying"),
        1043 => made(Type::String, Codec::Text, &format!("character varying({})", modifier - 4)),
        1082 => made(Type::Date, Codec::Text, "date"),
        1083 | 1114 | 1184 | 1266 => temporal(oid, modifier),
        1186 if modifier == -1 => made(Type::Interval, Codec::Text, "interval"),
        1700 => numeric(modifier),
        2950 => made(Type::Uuid, Codec::Text, "uuid"),
        _ => plain(oid, modifier).map(Resolved::other),
    }
}

fn temporal(oid: u32, modifier: i32) -> Option<Resolved> {
    let digits = if modifier < 0 { 6 } else { u8::try_from(modifier).ok().filter(|digits| *digits <= 9)? };
    let precision = if modifier < 0 { String::new() } else { format!("({modifier})") };
    let (logical, codec, stem, zone) = match oid {
        1083 => (Type::Time { digits }, Codec::Time(digits), "time", "without"),
        1114 => (Type::Timestamp { digits }, Codec::Timestamp(digits), "timestamp", "without"),
        1184 => (Type::TimestampTz { digits }, Codec::TimestampTz(digits), "timestamp", "with"),
        // The closed set has no time of day with a zone: its exact text.
        _ => (Type::Other, Codec::Text, "time", "with"),
    };
    Some(Resolved { logical, codec, name: format!("{stem}{precision} {zone} time zone") })
}

fn numeric(modifier: i32) -> Option<Resolved> {
    let (precision_scale, name) = if modifier < 4 {
        (None, "numeric".to_owned())
    } else {
        let bits = modifier - 4;
        let precision = u16::try_from(bits >> 16 & 0xffff).ok()?;
        // Eleven bits with a sign, as of version 15; older servers never use the upper ones.
        let scale = i16::try_from(((bits & 0x7ff) ^ 1024) - 1024).ok()?;
        (Some((precision, scale)), format!("numeric({precision},{scale})"))
    };
    Some(Resolved { logical: Type::Decimal { precision_scale }, codec: Codec::Text, name })
}

/// Types that travel as their exact text.
fn plain(oid: u32, modifier: i32) -> Option<String> {
    let name = match oid {
        28 => "xid",
        142 => "xml",
        600 => "point",
        601 => "lseg",
        602 => "path",
        603 => "box",
        604 => "polygon",
        628 => "line",
        650 => "cidr",
        718 => "circle",
        774 => "macaddr8",
        790 => "money",
        829 => "macaddr",
        869 => "inet",
        1560 if modifier == -1 => "\"bit\"",
        1560 => return Some(format!("bit({modifier})")),
        1562 if modifier == -1 => "bit varying",
        1562 => return Some(format!("bit varying({modifier})")),
        3220 => "pg_lsn",
        3614 => "tsvector",
        3615 => "tsquery",
        3904 => "int4range",
        3906 => "numrange",
        3908 => "tsrange",
        3910 => "tstzrange",
        3912 => "daterange",
        3926 => "int8range",
        4072 => "jsonpath",
        5069 => "xid8",
        _ => return None,
    };
    Some(name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modifiers_become_precision() {
        let of = |oid, modifier| builtin(oid, modifier).unwrap();
        assert_eq!(of(1700, (10 << 16 | 2) + 4).logical, Type::Decimal { precision_scale: Some((10, 2)) });
        assert_eq!(of(1700, (3 << 16 | (-2 & 0x7ff)) + 4).name, "numeric(3,-2)");
        assert_eq!(of(1184, 3).name, "timestamp(3) with time zone");
        assert_eq!(of(1184, -1).logical, Type::TimestampTz { digits: 6 });
        assert_eq!(of(1015, 24).name, "character varying(20)[]");
        assert_eq!(of(1231, (10 << 16 | 2) + 4).name, "numeric(10,2)[]");
    }

    #[test]
    fn unknown_types_are_asked_for() {
        assert_eq!(builtin(16385, -1), None);
        assert_eq!(builtin(1186, 458_757), None);
    }
}
