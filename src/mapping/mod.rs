//! Mapping.
pub mod rule;
