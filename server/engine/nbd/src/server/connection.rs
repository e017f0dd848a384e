//! One connection, on its own thread: the handshake, then the transmission.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::handshake::Handshake;
use super::input::Input;
use super::shared::Shared;
use super::transmission::{End, Transmission};
use crate::backend::{Client, Link};

/// Serve a connection to its end.
pub fn run(shared: &Arc<Shared>, link: &Arc<Link>, client: Client, origin: String) {
    let mut input = Input::new();
    let (id, address) = (client.id, client.address.clone());
    let session = match Handshake::new(shared, link, client, origin, &mut input).run() {
        Ok(Some(session)) => session,
        ended => {
            shared.not_opened.fetch_add(1, Ordering::Relaxed);
            if shared.connections.was_dropped(id) {
                let why = "it had not finished its handshake and was closed to make room for a newer connection";
                shared.report(&address, why);
            } else if matches!(ended, Err(error) if error.kind() == io::ErrorKind::TimedOut) {
                shared.timed_out.fetch_add(1, Ordering::Relaxed);
            }
            return;
        }
    };
    let _ = link.counts.set(session.opened.counts.clone());
    let mut transmission = Transmission::new(shared, link, &session, input);
    let end = transmission.run();
    transmission.finish();
    link.socket().farewell();
    if !matches!(end, Ok(End::Farewell)) && !shared.stopping.load(Ordering::SeqCst) {
        shared.broken.fetch_add(1, Ordering::Relaxed);
    }
}
