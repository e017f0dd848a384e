//! Reading ahead: which pages will be asked for, and those that were fetched before they were.

pub mod buffer;
pub mod streams;
