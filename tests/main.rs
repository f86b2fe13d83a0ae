//! The black-box tests: one binary, one module per promise, real servers and the real daemon.

mod bad_input;
mod checker;
mod ingest;
mod kafka;
mod kill;
mod support;
mod tidy;
