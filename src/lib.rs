//! Headwater: the map. (Written when the parts stand.)

pub mod config;
pub mod format;
pub mod http;
pub mod log;
pub mod mapping;
pub mod pipeline;
pub mod shutdown;
pub mod telemetry;
