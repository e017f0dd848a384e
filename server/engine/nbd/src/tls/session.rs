//! TLS over a socket that never waits by itself: what comes in and what goes out pass through this.
//!
//! Bounded: what is decrypted and not yet taken is at most one receive's worth, what is encrypted and not yet sent at most
//! [`UNSENT`] and a record.

use std::io::{self, Read, Write};
use std::sync::Arc;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, Connection, ServerConnection};

use super::Tls;
use super::name::of_certificate;

/// Bytes that are encrypted ahead of the other end.
const UNSENT: usize = 256 << 10;

pub struct TlsSession {
    connection: Connection,
    /// Decrypted bytes, and how many of them were taken.
    plain: Vec<u8>,
    taken: usize,
}

fn broken(e: rustls::Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, e)
}

impl TlsSession {
    pub fn new(tls: &Tls) -> io::Result<TlsSession> {
        let connection = ServerConnection::new(tls.config.clone()).map_err(broken)?;
        Ok(TlsSession::of(connection.into()))
    }

    /// The client's end, to a server of that name.
    pub fn client(config: Arc<ClientConfig>, name: ServerName<'static>) -> io::Result<TlsSession> {
        let connection = ClientConnection::new(config, name).map_err(broken)?;
        Ok(TlsSession::of(connection.into()))
    }

    fn of(mut connection: Connection) -> TlsSession {
        connection.set_buffer_limit(Some(UNSENT));
        TlsSession {
            connection,
            plain: Vec::new(),
            taken: 0,
        }
    }

    pub fn is_handshaking(&self) -> bool {
        self.connection.is_handshaking()
    }

    /// The client's name, where it showed a certificate.
    pub fn identity(&self) -> Result<Option<String>, String> {
        let shown = self.connection.peer_certificates();
        let shown = shown.and_then(|chain| chain.first());
        shown.map(|own| of_certificate(own)).transpose()
    }

    /// Take up bytes that came from the other end.
    pub fn feed(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            if self.connection.read_tls(&mut bytes)? == 0 {
                return Ok(());
            }
            let state = self.connection.process_new_packets().map_err(broken)?;
            let count = state.plaintext_bytes_to_read();
            let start = self.plain.len();
            self.plain.resize(start + count, 0);
            self.connection
                .reader()
                .read_exact(&mut self.plain[start..])?;
        }
        Ok(())
    }

    /// Take decrypted bytes; how many.
    pub fn take(&mut self, into: &mut [u8]) -> usize {
        let rest = &self.plain[self.taken..];
        let count = rest.len().min(into.len());
        into[..count].copy_from_slice(&rest[..count]);
        self.taken += count;
        if self.taken == self.plain.len() {
            self.plain.clear();
            self.taken = 0;
        }
        count
    }

    /// Encrypt as much as there is room for; how much.
    pub fn encrypt(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.connection.writer().write(bytes)
    }

    /// Whether encrypted bytes wait to be sent.
    pub fn has_unsent(&self) -> bool {
        self.connection.wants_write()
    }

    /// Hand encrypted bytes to `send`.
    pub fn send(&mut self, send: &mut dyn Write) -> io::Result<usize> {
        self.connection.write_tls(send)
    }

    /// The last word: nothing follows.
    pub fn farewell(&mut self) {
        self.connection.send_close_notify();
    }
}
