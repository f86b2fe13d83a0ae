//! What the black-box tests stand on: real servers, the real daemon, and waiting for a condition instead of sleeping for luck.

mod common;
pub mod daemon;
pub mod follow;
pub mod kafka;
pub mod oracle;
pub mod postgres;
pub mod proxy;
pub mod record;
pub mod shop;
pub mod workload;

pub use common::*;
