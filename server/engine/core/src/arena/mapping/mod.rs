//! The mapped file: its cells, its mapping, what becomes of a SIGBUS in it, and the table of all mappings.

pub mod cell;
pub mod map;
pub mod registry;
pub mod sigbus;
