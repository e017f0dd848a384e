//! The cache: the way to it, what is put there, and whether it pays.

pub mod link;
pub mod pending_flushes;
pub mod presence;
pub mod put_queue;
pub mod usefulness;
