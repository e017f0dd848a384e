//! The arena: one shared-memory file that holds all state.
//!
//! The store's `unsafe` is in this folder (the codec's C calls apart): mapped bytes, locks, descriptors. `layout` says where everything is,
//! `file` creates and attaches (`trust` says whose files, `header` which layouts), `locks` are the locks and who holds them, `mapping` has the mapped bytes and SIGBUS, `budget` keeps the memory limit, `table` is a growable array in the arena. References
//! inside the arena are offsets and numbers, so any process maps it anywhere.

mod budget;
mod file;
mod header;
mod layout;
mod locks;
mod mapping;
mod promise;
mod table;
mod trust;

pub use budget::{Budget, Full};
pub use file::{Arena, Attach};
pub use layout::*;
pub use locks::lock::{Acquired, Level};
pub use locks::wait_limits::{waiting_at_least, waiting_at_most};
#[cfg(feature = "crash-points")]
pub use mapping::cell::{Crash, arm, disarm};
pub use mapping::cell::{W32, W64};
pub use promise::{
    heap_at, heap_head, held_backing, is_backed, is_over_by, pool_frames, promised,
    promised_beyond, promised_to, required_backing, required_backing_after, with_index,
};
pub use table::Table;
