//! The volume: the SAN that holds it, what it is called, and who else uses it.

pub mod backing;
pub mod names;
pub mod register;
pub mod remote;
pub mod sample;
pub mod tokens;
pub mod unflushed;
