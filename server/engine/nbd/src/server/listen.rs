//! Where a server listens: Unix sockets, and TCP over IPv4 and IPv6.

use std::fmt;
use std::io;
use std::net::{IpAddr, TcpListener, ToSocketAddrs};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::net::sockopt;

use crate::wire::tune;

/// How long a listener rests that cannot accept, as where there are no file descriptors left.
const REST: Duration = Duration::from_millis(50);

/// Bytes that the system holds of replies on a Unix socket: more than a few pieces only fall out of the processor's cache.
const SEND_BUFFER: usize = 256 << 10;

/// One address to listen on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listen {
    Unix(PathBuf),
    /// A host's name stands for all its addresses.
    Tcp {
        host: String,
        port: u16,
    },
}

impl FromStr for Listen {
    type Err = String;

    /// `unix:PATH`, `tcp:HOST:PORT`; an IPv6 address in brackets.
    fn from_str(text: &str) -> Result<Listen, String> {
        let bad = || format!("{text:?} is neither unix:PATH nor tcp:HOST:PORT");
        if let Some(path) = text.strip_prefix("unix:").filter(|path| !path.is_empty()) {
            return Ok(Listen::Unix(path.into()));
        }
        let (host, port) = text
            .strip_prefix("tcp:")
            .and_then(|rest| rest.rsplit_once(':'))
            .ok_or_else(bad)?;
        let bare = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
        if host.is_empty() || (bare.is_none() && host.contains(':')) {
            return Err(bad());
        }
        Ok(Listen::Tcp {
            host: bare.unwrap_or(host).into(),
            port: port.parse().map_err(|_| bad())?,
        })
    }
}

/// Whether only this machine can reach a host. Names are not looked up: of them only `localhost` counts.
pub fn is_loopback(host: &str) -> bool {
    let address = host.parse::<IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.to_canonical().is_loopback())
}

impl Listen {
    /// The rule for every listener: it is a Unix socket or on loopback, or encrypted, or its user knows what it is.
    pub fn admit(&self, encrypted: bool, insecure: bool) -> Result<(), String> {
        match self {
            Listen::Tcp { host, .. } if !is_loopback(host) && !encrypted && !insecure => {
                Err(format!(
                    "other machines can reach {self}: give it TLS (--tls-cert and --tls-key, and --tls-client-ca so that only \
                 clients with certificates get in), or --insecure if anybody there may have access to what it serves"
                ))
            }
            _ => Ok(()),
        }
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Listen::Unix(path) => write!(f, "unix:{}", path.display()),
            Listen::Tcp { host, port } if host.contains(':') => write!(f, "tcp:[{host}]:{port}"),
            Listen::Tcp { host, port } => write!(f, "tcp:{host}:{port}"),
        }
    }
}

/// A connection just accepted.
pub struct Accepted {
    pub stream: OwnedFd,
    pub address: String,
    /// Who is behind the address, for limits: of IPv6 its network of 64 bits, all of which one host may have.
    pub origin: String,
    pub local: bool,
}

enum Bound {
    /// With its path, and the file there.
    Unix(UnixListener, PathBuf, FileId),
    Tcp(TcpListener),
}

type FileId = (u64, u64);

/// All listening sockets of a server. Dropped, they and their files are gone, unless another took the path.
pub struct Listener {
    bound: Vec<Bound>,
    wake: Arc<OwnedFd>,
}

/// Ends a listener's wait.
pub struct Waker(Arc<OwnedFd>);

impl Waker {
    pub fn wake(&self) {
        let _ = rustix::io::write(&*self.0, &1u64.to_ne_bytes());
    }
}

impl Listener {
    pub fn bind(addresses: &[Listen]) -> io::Result<Listener> {
        let mut listener = Listener {
            bound: Vec::new(),
            wake: Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?),
        };
        for address in addresses {
            let named = |e: io::Error| io::Error::new(e.kind(), format!("{address}: {e}"));
            match address {
                Listen::Unix(path) => listener.bound.push(bind_unix(path).map_err(named)?),
                Listen::Tcp { host, port } => {
                    let sockets = bind_tcp(host, *port).map_err(named)?;
                    listener.bound.extend(sockets.into_iter().map(Bound::Tcp));
                }
            }
        }
        Ok(listener)
    }

    pub fn addresses(&self) -> Vec<String> {
        let of = |bound: &Bound| match bound {
            Bound::Unix(_, path, _) => format!("unix:{}", path.display()),
            Bound::Tcp(socket) => socket.local_addr().map_or_else(
                |e| format!("tcp:? ({e})"),
                |address| format!("tcp:{address}"),
            ),
        };
        self.bound.iter().map(of).collect()
    }

    pub fn waker(&self) -> Waker {
        Waker(self.wake.clone())
    }

    /// Wait for connections, or to be woken.
    pub fn accept(&self, peer_timeout: Duration) -> Vec<Accepted> {
        let mut fds = vec![PollFd::new(&*self.wake, PollFlags::IN)];
        fds.extend(self.bound.iter().map(|bound| {
            let socket = match bound {
                Bound::Unix(socket, ..) => socket.as_fd(),
                Bound::Tcp(socket) => socket.as_fd(),
            };
            PollFd::from_borrowed_fd(socket, PollFlags::IN)
        }));
        if poll(&mut fds, None).is_err() {
            return Vec::new();
        }
        let ready = self.bound.iter().zip(&fds[1..]);
        let ready = ready.filter(|(_, fd)| !fd.revents().is_empty());
        ready
            .filter_map(|(bound, _)| match accept(bound, peer_timeout) {
                Ok(accepted) => Some(accepted),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => None,
                Err(_) => {
                    std::thread::sleep(REST);
                    None
                }
            })
            .collect()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        for bound in &self.bound {
            if let Bound::Unix(_, path, own) = bound
                && file_id(path).is_ok_and(|found| found == *own)
            {
                let _ = std::fs::remove_file(path);
            }
        }
    }
}

fn bind_unix(path: &Path) -> io::Result<Bound> {
    // A socket that nobody listens on is left over from a server that was killed.
    let is_socket = std::fs::metadata(path).is_ok_and(|found| found.file_type().is_socket());
    let left_over = is_socket
        && UnixStream::connect(path).is_err_and(|e| e.kind() == io::ErrorKind::ConnectionRefused);
    if left_over {
        std::fs::remove_file(path)?;
    }
    let socket = UnixListener::bind(path).map_err(|e| match e.kind() {
        io::ErrorKind::AddrInUse if is_socket => io::Error::new(e.kind(), "a server listens there"),
        io::ErrorKind::AddrInUse => io::Error::new(e.kind(), "what is there is not a socket"),
        io::ErrorKind::InvalidInput => {
            io::Error::other("the path of a socket can have at most 107 bytes")
        }
        _ => e,
    })?;
    socket.set_nonblocking(true)?;
    Ok(Bound::Unix(socket, path.into(), file_id(path)?))
}

/// Device and inode of what is at a path itself.
fn file_id(path: &Path) -> io::Result<FileId> {
    let found = std::fs::symlink_metadata(path)?;
    Ok((found.dev(), found.ino()))
}

/// Every address of the host; the port that the first got, where none was asked for.
fn bind_tcp(host: &str, port: u16) -> io::Result<Vec<TcpListener>> {
    let mut sockets: Vec<TcpListener> = Vec::new();
    for mut address in (host, port).to_socket_addrs()? {
        if let (0, Some(first)) = (port, sockets.first()) {
            address.set_port(first.local_addr()?.port());
        }
        let socket = TcpListener::bind(address)?;
        socket.set_nonblocking(true)?;
        sockets.push(socket);
    }
    if sockets.is_empty() {
        return Err(io::Error::other("the host has no address"));
    }
    Ok(sockets)
}

fn accept(bound: &Bound, peer_timeout: Duration) -> io::Result<Accepted> {
    match bound {
        Bound::Unix(socket, ..) => {
            let stream = socket.accept()?.0;
            // A large reply is then worked on while the client takes what is ready; TCP sees to this by itself.
            let _ = sockopt::set_socket_send_buffer_size(&stream, SEND_BUFFER);
            let process = sockopt::socket_peercred(&stream).map(|who| who.pid.as_raw_nonzero());
            Ok(Accepted {
                address: process.map_or("unix".into(), |pid| format!("unix (process {pid})")),
                stream: stream.into(),
                origin: "unix".into(),
                local: true,
            })
        }
        Bound::Tcp(socket) => {
            let (stream, address) = socket.accept()?;
            tune(&stream, peer_timeout)?;
            Ok(Accepted {
                stream: stream.into(),
                address: address.to_string(),
                origin: origin(address.ip().to_canonical()),
                local: address.ip().to_canonical().is_loopback(),
            })
        }
    }
}

fn origin(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => format!("{:x}/64", address.to_bits() >> 64),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_they_are_shown() {
        for text in ["unix:/run/a b.sock", "tcp:localhost:10809", "tcp:[::1]:0"] {
            assert_eq!(text.parse::<Listen>().unwrap().to_string(), text);
        }
        for text in [
            "",
            "unix:",
            "tcp:host",
            "tcp::1",
            "tcp:::1:1",
            "tcp:h:70000",
            "/run/x",
        ] {
            let error = text.parse::<Listen>().unwrap_err();
            assert!(error.contains("neither"), "{text}: {error}");
        }
    }

    #[test]
    fn what_other_machines_reach_is_encrypted_or_knowingly_plain() {
        let rule = |text: &str, encrypted, insecure| {
            text.parse::<Listen>().unwrap().admit(encrypted, insecure)
        };
        for text in [
            "unix:/x",
            "tcp:localhost:1",
            "tcp:127.8.8.8:1",
            "tcp:[::1]:1",
        ] {
            assert_eq!(rule(text, false, false), Ok(()));
        }
        for text in ["tcp:0.0.0.0:1", "tcp:[::]:1", "tcp:ram1:1", "tcp:*:1"] {
            let why = rule(text, false, false).unwrap_err();
            assert!(why.contains(text) && why.contains("--insecure"), "{why}");
            assert_eq!(
                (rule(text, true, false), rule(text, false, true)),
                (Ok(()), Ok(()))
            );
        }
    }

    #[test]
    fn a_socket_left_over_is_taken_over_and_one_in_use_is_not() {
        let path = std::env::temp_dir().join(format!("tmem-nbd-{}.sock", std::process::id()));
        drop(UnixListener::bind(&path).unwrap());
        let listen = [Listen::Unix(path.clone())];
        let first = Listener::bind(&listen).unwrap();
        assert!(Listener::bind(&listen).is_err());
        assert!(path.exists());
        // Another takes the path: it is not the first one's to remove.
        std::fs::remove_file(&path).unwrap();
        let second = Listener::bind(&listen).unwrap();
        drop(first);
        assert!(path.exists());
        drop(second);
        assert!(!path.exists());
    }
}
