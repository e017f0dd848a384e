//! tmem-nbd: pages as block devices.
//!
//! `server` speaks the NBD protocol to kernels, virtual machines and tools, and knows an export only as its backend.
//! It knows no Python; what it serves is chosen by who starts it.

#![deny(unsafe_code)]

mod backend;

pub use backend::{Errno, ExportInfo, Extent, Request, Served};
