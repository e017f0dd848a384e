//! Sockets, and the buffers from which replies are sent.

mod send_buffer;
mod socket;
mod tcp;

pub use send_buffer::{Mark, SendBuffer};
pub use socket::Socket;
pub use tcp::tune;
