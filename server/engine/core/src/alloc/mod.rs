//! Where pages lie: frames, the heaps made of them, and the allocators that fill heaps.
//!
//! Lower layers first: `slot <- frames <- heap <- {zsmalloc, zbud}`.

pub mod frames;
pub mod heap;
pub mod slot;
pub mod zbud;
pub mod zsmalloc;
