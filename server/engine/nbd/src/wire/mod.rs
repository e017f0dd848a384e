//! Bytes on their way: sockets, and the buffers from which they are sent.

mod out;
mod socket;
mod tcp;

pub use out::{Mark, Out};
pub use socket::Socket;
pub use tcp::tune;
