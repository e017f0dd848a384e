//! What can be exported: an object of a pool as a disk, and the objects of ephemeral pools as caches.

pub mod cache_object;
pub mod pool_device;
