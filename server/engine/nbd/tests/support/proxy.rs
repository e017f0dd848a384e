//! A way between a client and a server on Unix sockets that can be held up, slowed and cut.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

#[derive(Default)]
struct Shared {
    /// Connections numbered below this pass nothing on.
    held: AtomicU64,
    /// Microseconds by which each piece is late.
    delay: AtomicU64,
    count: AtomicU64,
    gone: AtomicBool,
    open: Mutex<Vec<UnixStream>>,
}

pub struct Proxy {
    shared: Arc<Shared>,
    path: PathBuf,
}

impl Proxy {
    /// Listen at `path` for a server at `to`.
    pub fn start(path: &Path, to: &Path) -> Proxy {
        let listener = UnixListener::bind(path).unwrap();
        let shared = Arc::new(Shared::default());
        let (state, to) = (shared.clone(), to.to_owned());
        thread::spawn(move || {
            for near in listener.incoming() {
                if state.gone.load(Ordering::SeqCst) {
                    return;
                }
                let (Ok(near), Ok(far)) = (near, UnixStream::connect(&to)) else {
                    continue;
                };
                let number = state.count.fetch_add(1, Ordering::SeqCst);
                let mut open = state.open.lock().unwrap();
                for (from, into) in [(&near, &far), (&far, &near)] {
                    let (from, into) = (from.try_clone().unwrap(), into.try_clone().unwrap());
                    let state = state.clone();
                    thread::spawn(move || pass(&state, number, from, into));
                }
                open.extend([near, far]);
            }
        });
        let path = path.to_owned();
        Proxy { shared, path }
    }

    /// Hold up what is on its way; new connections are free.
    pub fn hold(&self) {
        let count = self.shared.count.load(Ordering::SeqCst);
        self.shared.held.store(count, Ordering::SeqCst);
    }

    /// Hold up new connections as well.
    pub fn hold_all(&self) {
        self.shared.held.store(u64::MAX, Ordering::SeqCst);
    }

    pub fn release(&self) {
        self.shared.held.store(0, Ordering::SeqCst);
    }

    pub fn delay(&self, delay: Duration) {
        let micros = delay.as_micros() as u64;
        self.shared.delay.store(micros, Ordering::SeqCst);
    }

    pub fn cut(&self) {
        for stream in self.shared.open.lock().unwrap().drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.release();
        self.shared.gone.store(true, Ordering::SeqCst);
        self.cut();
        let _ = UnixStream::connect(&self.path);
    }
}

fn pass(shared: &Shared, number: u64, mut from: UnixStream, mut into: UnixStream) {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let count = match from.read(&mut buffer) {
            Ok(count) if count > 0 => count,
            _ => break,
        };
        while number < shared.held.load(Ordering::SeqCst) {
            thread::sleep(Duration::from_millis(1));
        }
        match shared.delay.load(Ordering::SeqCst) {
            0 => {}
            micros => thread::sleep(Duration::from_micros(micros)),
        }
        if into.write_all(&buffer[..count]).is_err() {
            break;
        }
    }
    let _ = into.shutdown(Shutdown::Both);
}
