//! The arena: one shared-memory file that holds all state.
//!
//! `mapping` maps the file and survives a SIGBUS in it; `locks` has locks whose owners may die; `layout` says where
//! everything lies. `trust` says which files may be arenas, `header` which layouts can be read, and `file` creates and
//! attaches them. `budget` enforces the memory limit, `promise` keeps reserves, and `table` is an array that grows in
//! the arena.
//! References inside the arena are offsets and numbers, so each process may map it at another address. Apart from the
//! codec's calls into C, all `unsafe` of the store is in this folder.

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
