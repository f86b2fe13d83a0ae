//! Configuration: from files and environment to a [`plan`] that was checked without touching anything.
//!
//! In reading order: [`raw`] is what a user types. [`parse`] makes a [`tree`] of each file that knows where everything stands;
//! [`load`] merges the trees and lays the [`env`] over them; [`validate`] compares the whole with the [`schema`], which is
//! derived from `raw` and from the options of the kinds; [`rules`] are the checks that no schema can say. Only then are the
//! parts read into structs ([`typed`]) and become the [`plan`]. Every step reports all its faults.

pub mod closest;
pub mod codes;
pub mod env;
mod json;
pub mod load;
pub mod parse;
pub mod plan;
pub mod raw;
pub mod reference;
pub mod rules;
pub mod schema;
#[cfg(test)]
mod tests;
pub mod tree;
pub mod typed;
pub mod validate;

pub use load::{load, load_http, load_log};
