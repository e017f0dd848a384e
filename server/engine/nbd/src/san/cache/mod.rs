//! The cache: the connection to it, what is put there, and whether using it pays off.

pub mod link;
pub mod pending_flushes;
pub mod presence;
pub mod put_queue;
pub mod usefulness;
