//! Where pages lie: frames, heaps of them, and the allocators that fill those.
//!
//! Lower layers first: `slot <- frames <- heap <- {zsmalloc, zbud}`.

pub mod frames;
pub mod heap;
pub mod slot;
pub mod zbud;
pub mod zsmalloc;
