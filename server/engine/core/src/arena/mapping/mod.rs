//! The mapped file: its atomic cells, the mapping itself, the SIGBUS handler, and the table of all mappings.

pub mod cell;
pub mod map;
pub mod registry;
pub mod sigbus;
