//! Row to bytes. JSON is the native format; others are options of a connector.

pub mod json;
