//! The native format: one flat JSON object per row, a column's JSON type never depends on its value.

use headwater_connector::{Type, Value, json};

/// How the text of a column becomes JSON. Chosen once per schema, so that a row only follows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shape {
    /// Digits that are a JSON number already.
    Number,
    /// A JSON number, or one of `NaN`, `Infinity`, `-Infinity`, which become strings.
    Float,
    /// A string of characters that never need an escape.
    Plain,
    /// A string that may need escapes.
    Escaped,
}

/// One column of the object, ready to write.
#[derive(Clone, Debug)]
pub struct Member {
    /// `"name":`
    name: Box<[u8]>,
    shape: Shape,
}

impl Member {
    /// A member named `name` that holds values of `r#type`.
    pub fn new(name: &str, r#type: &Type) -> Self {
        let mut quoted = Vec::with_capacity(name.len() + 3);
        json::push_string(&mut quoted, name);
        quoted.push(b':');
        Self { name: quoted.into_boxed_slice(), shape: shape_of(r#type) }
    }

    /// Appends `"name":value`, or nothing for what has no JSON.
    pub fn push(&self, out: &mut Vec<u8>, value: Value<'_>) -> Pushed {
        match value {
            Value::Unchanged => Pushed::Absent,
            Value::Invalid(_) => Pushed::Invalid,
            _ => {
                out.extend_from_slice(&self.name);
                push_value(out, self.shape, value);
                Pushed::Written
            }
        }
    }
}

/// What became of a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pushed {
    /// It is in the object.
    Written,
    /// The log does not carry the value: it is named in `hw.absent`, and never null.
    Absent,
    /// The value cannot be represented.
    Invalid,
}

fn shape_of(r#type: &Type) -> Shape {
    match r#type {
        Type::Int8 | Type::Int16 | Type::Int32 | Type::Int64 | Type::Uint8 | Type::Uint16 | Type::Uint32 | Type::Uint64 => {
            Shape::Number
        }
        Type::Float32 | Type::Float64 => Shape::Float,
        Type::Decimal { .. }
        | Type::Date
        | Type::Time { .. }
        | Type::Timestamp { .. }
        | Type::TimestampTz { .. }
        | Type::Uuid => Shape::Plain,
        // A json or array column whose text was not valid JSON arrives as text; so does anything unknown.
        Type::Boolean
        | Type::String
        | Type::Bytes
        | Type::Interval
        | Type::Json
        | Type::Enum { .. }
        | Type::Array(_)
        | Type::Other => Shape::Escaped,
    }
}

fn push_value(out: &mut Vec<u8>, shape: Shape, value: Value<'_>) {
    match value {
        Value::Null | Value::Unchanged | Value::Invalid(_) => out.extend_from_slice(b"null"),
        Value::Bool(true) => out.extend_from_slice(b"true"),
        Value::Bool(false) => out.extend_from_slice(b"false"),
        Value::Int(number) => push_number(out, shape, format_args!("{number}")),
        Value::Uint(number) => push_number(out, shape, format_args!("{number}")),
        Value::Text(text) => push_text(out, shape, text),
        Value::Bytes(bytes) => json::push_base64(out, bytes),
        Value::Json(text) => out.extend_from_slice(text.as_bytes()),
    }
}

fn push_number(out: &mut Vec<u8>, shape: Shape, digits: std::fmt::Arguments<'_>) {
    use std::io::Write;
    // Writing to a Vec cannot fail.
    let _ = match shape {
        Shape::Number | Shape::Float => out.write_fmt(digits),
        Shape::Plain | Shape::Escaped => write!(out, "\"{digits}\""),
    };
}

fn push_text(out: &mut Vec<u8>, shape: Shape, text: &str) {
    let quoted = |out: &mut Vec<u8>| {
        out.push(b'"');
        out.extend_from_slice(text.as_bytes());
        out.push(b'"');
    };
    match shape {
        Shape::Number => out.extend_from_slice(text.as_bytes()),
        Shape::Float if text.ends_with(['N', 'y']) => quoted(out),
        Shape::Float => out.extend_from_slice(text.as_bytes()),
        Shape::Plain => quoted(out),
        Shape::Escaped => json::push_string(out, text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(r#type: &Type, value: Value<'_>) -> String {
        let mut out = Vec::new();
        Member::new("a", r#type).push(&mut out, value);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_columns_json_type_never_depends_on_its_value() {
        for (r#type, text, expected) in [
            (Type::Int64, "-9223372036854775808", r#""a":-9223372036854775808"#),
            (Type::Decimal { precision_scale: None }, "1.00", r#""a":"1.00""#),
            (Type::Decimal { precision_scale: None }, "NaN", r#""a":"NaN""#),
            (Type::Float64, "1.5e+300", r#""a":1.5e+300"#),
            (Type::Float64, "NaN", r#""a":"NaN""#),
            (Type::Float32, "-Infinity", r#""a":"-Infinity""#),
            (Type::String, "say \"hi\"", r#""a":"say \"hi\"""#),
            (Type::TimestampTz { digits: 6 }, "infinity", r#""a":"infinity""#),
        ] {
            assert_eq!(member(&r#type, Value::Text(text)), expected);
        }
        assert_eq!(member(&Type::Int64, Value::Null), r#""a":null"#);
        assert_eq!(member(&Type::Uint64, Value::Uint(u64::MAX)), r#""a":18446744073709551615"#);
        assert_eq!(member(&Type::Decimal { precision_scale: None }, Value::Int(3)), r#""a":"3""#);
        assert_eq!(member(&Type::Json, Value::Json(r#"{"b":1}"#)), r#""a":{"b":1}"#);
        assert_eq!(member(&Type::Boolean, Value::Bool(true)), r#""a":true"#);
        assert_eq!(member(&Type::Bytes, Value::Bytes(&[1, 2])), r#""a":"AQI=""#);
    }

    #[test]
    fn an_unchanged_value_is_absent_and_never_null() {
        assert_eq!(member(&Type::String, Value::Unchanged), "");
    }
}
