//! Config.
pub mod plan;
