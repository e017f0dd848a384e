//! The arena's locks, who holds them, and how long they are waited for.

pub mod file_lock;
pub mod lock;
pub mod owner;
pub mod wait_limits;
