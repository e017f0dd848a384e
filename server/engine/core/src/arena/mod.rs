//! The arena: one shared-memory file that holds all state.
//!
//! The store's `unsafe` is in this folder (the codec's C calls apart): mapped bytes, locks, descriptors. `layout` says where everything is,
//! `file` creates and attaches (`door` says whose files, `header` which layouts), `lock` and `owner` are the locks and who holds them, `fault` has SIGBUS, `budget` keeps the memory limit, `table` is a growable array in the arena. References
//! inside the arena are offsets and numbers, so any process maps it anywhere.

mod budget;
mod cell;
mod door;
mod fault;
mod file;
mod header;
mod layout;
mod lock;
mod map;
mod owner;
mod patience;
mod promise;
mod range;
mod registry;
mod table;

pub use budget::{Budget, Full};
#[cfg(feature = "crash-points")]
pub use cell::{Crash, arm, disarm};
pub use cell::{W32, W64};
pub use file::{Arena, Attach};
pub use layout::*;
pub use lock::{Acquired, Level};
pub use patience::{waiting_at_least, waiting_at_most};
pub use promise::{
    heap_at, heap_head, is_backed, is_over_by, kept, owed, owed_after, pool_frames, promised,
    promised_beyond, promised_to, with_index,
};
pub use table::Table;
