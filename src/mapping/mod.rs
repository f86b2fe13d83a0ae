//! From changes to keyed events. Pure: no IO, no async.
//!
//! [`rule`] is what the user writes, [`route`] what it means for the tables that are there, [`key`] and [`payload`] write a
//! row's bytes, and [`encode`] turns a batch of changes into the records of a log transaction.

pub mod codes;
pub mod encode;
pub mod key;
pub mod payload;
pub mod route;
pub mod rule;

pub use encode::{Encoder, Place};
pub use route::{Route, Routes};
