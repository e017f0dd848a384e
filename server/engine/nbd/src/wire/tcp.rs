//! TCP options for both ends of an NBD connection.

use std::io;
use std::net::TcpStream;
use std::time::Duration;

use rustix::net::sockopt;

/// Send at once, and notice within `patience` a peer that is gone.
pub fn tune(stream: &TcpStream, patience: Duration) -> io::Result<()> {
    let interval = (patience / 4).max(Duration::from_secs(1));
    let milliseconds = u32::try_from(patience.as_millis()).unwrap_or(u32::MAX);
    stream.set_nodelay(true)?;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, interval)?;
    sockopt::set_tcp_keepintvl(stream, interval)?;
    sockopt::set_tcp_keepcnt(stream, 3)?;
    sockopt::set_tcp_user_timeout(stream, milliseconds)?;
    Ok(())
}
