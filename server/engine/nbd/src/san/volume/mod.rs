//! The volume: the SAN that holds it, its names, and the other gateways of this host that use it.

pub mod backing;
pub mod names;
pub mod register;
pub mod remote;
pub mod sample;
pub mod tokens;
pub mod unflushed;
