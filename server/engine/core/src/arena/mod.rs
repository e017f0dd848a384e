//! The arena: one shared-memory file that holds all state.
//!
//! The store's `unsafe` is in this folder (the codec's C calls apart): mapped bytes, locks, descriptors. `layout` says where everything is,
//! `file` creates and attaches, `budget` keeps the memory limit, `table` is a growable array in the arena. References
//! inside the arena are offsets and numbers, so any process maps it anywhere.

mod budget;
mod cell;
mod file;
mod layout;
mod lock;
mod map;
mod promise;
mod table;

pub use budget::{Budget, Full};
#[cfg(feature = "crash-points")]
pub use cell::{Crash, arm, disarm};
pub use cell::{W32, W64};
pub use file::{Arena, Attach};
pub use layout::*;
pub use lock::{Acquired, Level};
pub use promise::{
    heap_at, heap_head, is_backed, is_over_by, kept, owed, owed_after, pool_frames, promised,
    promised_beyond, promised_to, with_index,
};
pub use table::Table;
