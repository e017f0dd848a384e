//! Where an NBD server is, and which export of it is meant: `nbd://HOST[:PORT]/EXPORT`, `nbd+unix:///EXPORT?socket=PATH`,
//! `unix:PATH`, `tcp:HOST:PORT`, `HOST:PORT`.

use std::fmt;
use std::io::{self, IoSlice, Read, Write};
use std::net::{Shutdown, TcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno as Os;
use rustix::net::{RecvFlags, recv, sockopt};

use crate::wire::tune;

/// A TCP peer that gives no sign of life for so long is taken for gone.
const SILENCE: Duration = Duration::from_secs(20);

/// The port that IANA gave to NBD.
const PORT: u16 = 10809;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    Unix(PathBuf),
    Tcp { host: String, port: u16 },
}

/// An export of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uri {
    pub endpoint: Endpoint,
    pub export: String,
}

impl Endpoint {
    /// `unix:PATH`, `tcp:HOST:PORT` or `HOST:PORT`; an IPv6 address in brackets.
    pub fn parse(text: &str) -> Result<Endpoint, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            return unix(path);
        }
        let (host, port) = authority(text.strip_prefix("tcp:").unwrap_or(text))?;
        match port {
            Some(port) => Ok(Endpoint::Tcp { host, port }),
            None => Err(format!(
                "{text:?} names no port: it is unix:PATH or HOST:PORT"
            )),
        }
    }

    /// Connect, each address tried for at most `within`.
    pub fn connect(&self, within: Duration) -> io::Result<Stream> {
        match self {
            Endpoint::Unix(path) => Ok(Stream::Unix(UnixStream::connect(path)?)),
            Endpoint::Tcp { host, port } => {
                let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
                for address in (host.as_str(), *port).to_socket_addrs()? {
                    match TcpStream::connect_timeout(&address, within) {
                        Ok(stream) => {
                            tune(&stream, SILENCE)?;
                            return Ok(Stream::Tcp(stream));
                        }
                        Err(error) => last = error,
                    }
                }
                Err(last)
            }
        }
    }
}

fn unix(path: &str) -> Result<Endpoint, String> {
    match path {
        "" => Err("the path of the socket is empty".into()),
        _ => Ok(Endpoint::Unix(path.into())),
    }
}

/// Host, and port where there is one.
fn authority(text: &str) -> Result<(String, Option<u16>), String> {
    let bad = |why: &str| Err(format!("{text:?} {why}"));
    let (host, rest) = match text.strip_prefix('[') {
        Some(open) => match open.split_once(']') {
            Some((host, rest)) => (host, rest),
            None => return bad("has a bracket that is not closed"),
        },
        None => text.split_at(text.find(':').unwrap_or(text.len())),
    };
    if host.is_empty() {
        return bad("names no host");
    }
    match rest.strip_prefix(':') {
        None if rest.is_empty() => Ok((host.into(), None)),
        Some(port) => match port.parse::<u16>() {
            Ok(port) if port > 0 => Ok((host.into(), Some(port))),
            _ => bad("has a port that is not a number from 1 to 65535"),
        },
        None => bad("has something other than a port after the host"),
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Endpoint::Unix(path) => write!(f, "unix:{}", path.display()),
            Endpoint::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Endpoint::Tcp { host, port } => write!(f, "{host}:{port}"),
        }
    }
}

impl Uri {
    /// Whether a text is meant as one.
    pub fn is_one(text: &str) -> bool {
        ["nbd://", "nbd+unix://", "nbds://", "nbds+unix://"]
            .iter()
            .any(|scheme| text.starts_with(scheme))
    }

    pub fn parse(text: &str) -> Result<Uri, String> {
        if let Some(rest) = text.strip_prefix("nbd+unix://") {
            return Uri::unix(text, rest);
        }
        let Some(rest) = text.strip_prefix("nbd://") else {
            return Err(format!(
                "{text:?} is not the address of an NBD export: nbd://HOST[:PORT]/EXPORT or nbd+unix:///EXPORT?socket=PATH"
            ));
        };
        let (server, export) = rest.split_once('/').unwrap_or((rest, ""));
        if export.contains('?') || server.contains('?') {
            return Err(format!("{text:?} has options, and nbd:// takes none"));
        }
        let (host, port) = authority(server)?;
        Ok(Uri {
            endpoint: Endpoint::Tcp {
                host,
                port: port.unwrap_or(PORT),
            },
            export: decoded(export)?,
        })
    }

    fn unix(text: &str, rest: &str) -> Result<Uri, String> {
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        let socket = query
            .split('&')
            .find_map(|pair| pair.strip_prefix("socket="));
        let Some(socket) = socket else {
            return Err(format!("{text:?} has no ?socket=PATH"));
        };
        let Some(export) = path.strip_prefix('/').or(path.is_empty().then_some("")) else {
            return Err(format!(
                "{text:?} names a host; a Unix socket has none: nbd+unix:///EXPORT"
            ));
        };
        Ok(Uri {
            endpoint: unix(&decoded(socket)?)?,
            export: decoded(export)?,
        })
    }
}

/// Percent-decoded.
fn decoded(text: &str) -> Result<String, String> {
    let bad = || format!("{text:?} is not percent-encoded UTF-8");
    let (mut bytes, mut rest) = (Vec::new(), text.as_bytes());
    while let [first, after @ ..] = rest {
        if *first == b'%' {
            let digits = after.get(..2).and_then(|two| std::str::from_utf8(two).ok());
            let byte = digits.and_then(|two| u8::from_str_radix(two, 16).ok());
            bytes.push(byte.ok_or_else(bad)?);
            rest = &after[2..];
        } else {
            bytes.push(*first);
            rest = after;
        }
    }
    String::from_utf8(bytes).map_err(|_| bad())
}

/// A connected socket.
#[derive(Debug)]
pub enum Stream {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Stream {
    pub fn try_clone(&self) -> io::Result<Stream> {
        Ok(match self {
            Stream::Unix(stream) => Stream::Unix(stream.try_clone()?),
            Stream::Tcp(stream) => Stream::Tcp(stream.try_clone()?),
        })
    }

    /// How long a write may wait.
    pub fn patience(&self, write: Duration) -> io::Result<()> {
        match self {
            Stream::Unix(stream) => stream.set_write_timeout(Some(write)),
            Stream::Tcp(stream) => stream.set_write_timeout(Some(write)),
        }
    }

    /// The same, and what was not sent yet never is.
    pub fn abort(&self) {
        if let Stream::Tcp(stream) = self {
            // The socket is reset when it is closed, which it is once its threads have noticed.
            let _ = sockopt::set_socket_linger(stream, Some(Duration::ZERO));
        }
        self.shut();
    }

    /// End both directions; whoever waits on the socket wakes.
    pub fn shut(&self) {
        let _ = match self {
            Stream::Unix(stream) => stream.shutdown(Shutdown::Both),
            Stream::Tcp(stream) => stream.shutdown(Shutdown::Both),
        };
    }
}

/// Who waits in a Unix socket's `recv` is also woken whenever the other side takes up what was sent to it, thus once more for
/// each command; who waits in `poll` is not.
fn receive(stream: &UnixStream, into: &mut [u8]) -> io::Result<usize> {
    loop {
        match recv(stream, &mut *into, RecvFlags::DONTWAIT) {
            Ok((count, _)) => return Ok(count),
            Err(Os::AGAIN) => match poll(&mut [PollFd::new(stream, PollFlags::IN)], None) {
                Ok(_) | Err(Os::INTR) => {}
                Err(error) => return Err(error.into()),
            },
            Err(Os::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

impl Read for &Stream {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match self {
            Stream::Unix(stream) => receive(stream, into),
            Stream::Tcp(stream) => (&mut &*stream).read(into),
        }
    }
}

impl Write for &Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Stream::Unix(stream) => (&mut &*stream).write(bytes),
            Stream::Tcp(stream) => (&mut &*stream).write(bytes),
        }
    }

    fn write_vectored(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Stream::Unix(stream) => (&mut &*stream).write_vectored(parts),
            Stream::Tcp(stream) => (&mut &*stream).write_vectored(parts),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp(host: &str, port: u16) -> Endpoint {
        Endpoint::Tcp {
            host: host.into(),
            port,
        }
    }

    #[test]
    fn every_way_to_name_a_server_is_understood() {
        let uri = |text: &str| Uri::parse(text).map(|uri| (uri.endpoint, uri.export));
        assert_eq!(uri("nbd://h"), Ok((tcp("h", 10809), String::new())));
        assert_eq!(
            uri("nbd://[::1]:7/a%20b"),
            Ok((tcp("::1", 7), "a b".into()))
        );
        let unix = Endpoint::Unix("/run/x".into());
        assert_eq!(
            uri("nbd+unix:///disk?socket=/run/x"),
            Ok((unix.clone(), "disk".into()))
        );
        assert_eq!(Endpoint::parse("unix:/run/x"), Ok(unix));
        assert_eq!(Endpoint::parse("tcp:127.0.0.1:9"), Ok(tcp("127.0.0.1", 9)));
        assert_eq!(Endpoint::parse("[::1]:9").unwrap().to_string(), "[::1]:9");
    }

    #[test]
    fn what_names_no_server_is_refused_with_the_reason() {
        for (text, why) in [
            ("host", "names no port"),
            ("host:0", "not a number"),
            (":9", "names no host"),
            ("[::1", "not closed"),
            ("unix:", "empty"),
        ] {
            let refused = Endpoint::parse(text).unwrap_err();
            assert!(refused.contains(why), "{text}: {refused}");
        }
        for (text, why) in [
            ("nbd+unix:///a", "no ?socket"),
            ("nbd://h/%zz", "percent"),
            ("nbds://h/", "not the address"),
            ("nbd://h/a?x=1", "options"),
        ] {
            let refused = Uri::parse(text).unwrap_err();
            assert!(refused.contains(why), "{text}: {refused}");
        }
    }
}
