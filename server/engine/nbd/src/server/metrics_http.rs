//! An HTTP server for one page of metrics, as Prometheus scrapes it.
//!
//! Each connection has a deadline, and when there are too many the oldest is closed: slow or silent clients delay
//! neither others nor the shutdown. Only the head of a request is kept. Locking: `open` is not held during I/O.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::input::{handshake_tls, wait};
use super::listen::{Accepted, Listen, Listener, Waker};
use super::shared::Renewal;
use crate::tls::{Tls, TlsSession};
use crate::wire::SendBuffer;
use crate::wire::Socket;

/// Connections at once.
const MOST: usize = 16;
/// From connecting to having all of the answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Longest head of a request, in bytes.
const HEAD: usize = 8 << 10;

pub type Page = dyn Fn() -> String + Send + Sync;

/// Serves `/metrics` until it is dropped.
pub struct MetricsServer {
    shared: Arc<Shared>,
    addresses: Vec<String>,
    acceptor: Option<JoinHandle<()>>,
}

struct Shared {
    page: Box<Page>,
    secured: Option<Mutex<Secured>>,
    open: Mutex<Vec<Arc<Socket>>>,
    stopping: AtomicBool,
    waker: Waker,
}

struct Secured {
    tls: Tls,
    renewal: Box<Renewal>,
}

impl MetricsServer {
    /// With TLS if there is any and other machines can reach it.
    pub fn start(
        listen: &Listen,
        page: Box<Page>,
        tls: Option<(Tls, Box<Renewal>)>,
        insecure: bool,
    ) -> io::Result<MetricsServer> {
        let private = listen.admit(false, false).is_ok();
        let secured = tls.filter(|_| !private);
        let admitted = listen.admit(secured.is_some(), insecure);
        admitted.map_err(|why| io::Error::new(io::ErrorKind::InvalidInput, why))?;
        let listener = Listener::bind(std::slice::from_ref(listen))?;
        let addresses = listener.addresses();
        let shared = Arc::new(Shared {
            page,
            secured: secured.map(|(tls, renewal)| Mutex::new(Secured { tls, renewal })),
            open: Mutex::default(),
            stopping: AtomicBool::new(false),
            waker: listener.waker(),
        });
        let its = shared.clone();
        let acceptor = thread::Builder::new().name("metrics".into());
        let acceptor = acceptor.spawn(move || its.accept(&listener))?;
        Ok(MetricsServer {
            shared,
            addresses,
            acceptor: Some(acceptor),
        })
    }

    pub fn addresses(&self) -> &[String] {
        &self.addresses
    }
}

impl Drop for MetricsServer {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::SeqCst);
        self.shared.waker.wake();
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
        self.shared.open().iter().for_each(|socket| socket.close());
    }
}

impl Shared {
    fn open(&self) -> MutexGuard<'_, Vec<Arc<Socket>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn accept(self: &Arc<Shared>, listener: &Listener) {
        loop {
            let accepted = listener.accept(PATIENCE);
            if self.stopping.load(Ordering::SeqCst) {
                return;
            }
            for one in accepted {
                let _ = self.welcome(one); // the system has no more to give: the next one may find some
            }
        }
    }

    fn welcome(self: &Arc<Shared>, accepted: Accepted) -> io::Result<()> {
        let socket = Arc::new(Socket::new(accepted.stream)?);
        let mut open = self.open();
        open.push(socket.clone());
        if open.len() > MOST {
            open.remove(0).close();
        }
        drop(open);
        let (shared, its) = (self.clone(), socket.clone());
        let thread = thread::Builder::new().name("metrics-scrape".into());
        let spawned = thread.spawn(move || {
            let _ = shared.serve(&its); // who went away, or was too slow, hears nothing
            its.close();
            shared.forget(&its);
        });
        spawned.map(drop).inspect_err(|_| self.forget(&socket))
    }

    fn forget(&self, socket: &Arc<Socket>) {
        self.open().retain(|other| !Arc::ptr_eq(other, socket));
    }

    fn serve(&self, socket: &Socket) -> io::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        if let Some(secured) = &self.secured {
            let tls = newest(secured);
            match handshake_tls(socket, TlsSession::new(&tls)?, Vec::new(), deadline)? {
                Some(session) => socket.encrypt(session),
                None => return Ok(()),
            }
        }
        let Some(head) = receive(socket, deadline)? else {
            return Ok(());
        };
        let mut out = SendBuffer::default();
        out.push(self.answer(&head).as_bytes());
        while !socket.send_some(&mut out) {
            wait(socket, true, deadline)?;
        }
        socket.farewell();
        Ok(())
    }

    fn answer(&self, head: &str) -> String {
        let mut words = head.split_ascii_whitespace();
        let (method, target) = (words.next(), words.next().unwrap_or_default());
        let path = target.split('?').next();
        let (status, body) = match (method, path) {
            (Some("GET" | "HEAD"), Some("/metrics")) => ("200 OK", (self.page)()),
            (Some("GET" | "HEAD"), _) => ("404 Not Found", "see /metrics\n".into()),
            _ => ("405 Method Not Allowed", "only GET\n".into()),
        };
        let length = body.len();
        let kind = "text/plain; version=0.0.4; charset=utf-8";
        let sent = if method == Some("HEAD") { "" } else { &body };
        format!(
            "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{sent}"
        )
    }
}

fn newest(secured: &Mutex<Secured>) -> Tls {
    let mut secured = secured.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(renewed) = (secured.renewal)() {
        secured.tls = renewed;
    }
    secured.tls.clone()
}

/// The head of a request; None where it does not come, or is too long.
fn receive(socket: &Socket, deadline: Instant) -> io::Result<Option<String>> {
    let (mut head, mut bytes) = (Vec::new(), [0; 1024]);
    while !head.windows(4).any(|four| four == b"\r\n\r\n") {
        match socket.receive(&mut bytes, false)? {
            Some(0) => return Ok(None),
            Some(count) => head.extend_from_slice(&bytes[..count]),
            None => wait(socket, false, deadline)?,
        }
        if head.len() > HEAD || Instant::now() > deadline {
            return Ok(None);
        }
    }
    Ok(Some(String::from_utf8_lossy(&head).into_owned()))
}
