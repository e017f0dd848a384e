//! Read-ahead: predicts which pages will be read, and buffers those that were fetched early.

pub mod buffer;
pub mod streams;
