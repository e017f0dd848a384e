//! The arena's locks, their owners, and the limits on waiting for them.

pub mod file_lock;
pub mod lock;
pub mod owner;
pub mod wait_limits;
