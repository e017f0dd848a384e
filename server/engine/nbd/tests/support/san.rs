//! A SAN gateway with all that is around it, in one process, over real sockets.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tempfile::TempDir;
use tmem_core::{Kind, Pool, PoolSettings, Store, StoreOptions};
use tmem_nbd::backends::cache_object::{Caches, PREFIX};
use tmem_nbd::client::{Client, Command, Endpoint, Failure, Options};
use tmem_nbd::san::{
    Backing, CacheAddress, Change, Changed, FileBacking, Gateway, Read, Settings, Tokens, Volume,
};
use tmem_nbd::{Access, Exports, Listen, Server, Settings as Serving};

use super::proxy::Proxy;

pub const PAGE: usize = 4096;
pub const LONG: Duration = Duration::from_secs(60);

/// Small random numbers.
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (self.0 >> 33) % bound
    }
}

/// A store with one pool, served like a daemon does, behind a proxy.
pub struct Cache {
    pub store: Store,
    pub pool: Pool,
    pub proxy: Proxy,
    server: Option<Server>,
    directory: TempDir,
}

impl Cache {
    pub fn start(memory: u64, shared: bool) -> Cache {
        let directory = TempDir::new().unwrap();
        let options = StoreOptions {
            memory,
            arena: Some(directory.path().join("arena")),
            shards: Some(1),
            ..StoreOptions::default()
        };
        let store = Store::open(&options).unwrap();
        let mut settings = PoolSettings::new(Kind::Ephemeral);
        (settings.shared, settings.inclusive) = (shared, !shared);
        let pool = store.pool("p", &settings).unwrap();
        let proxy = Proxy::start(
            &directory.path().join("proxy"),
            &directory.path().join("server"),
        );
        let mut cache = Cache {
            store,
            pool,
            proxy,
            server: None,
            directory,
        };
        cache.resume();
        cache
    }

    /// As a daemon that died: connections break, the arena stays.
    pub fn kill(&mut self) {
        if let Some(server) = self.server.take() {
            server.stop(Duration::ZERO);
        }
    }

    pub fn resume(&mut self) {
        self.kill();
        let exports = Exports::new();
        let caches = Caches::new(self.store.clone(), Box::new(|_, _, _, _| Ok(())));
        exports.add_prefix(PREFIX, Arc::new(caches)).unwrap();
        let listen = Listen::Unix(self.directory.path().join("server"));
        self.server = Some(Server::start(&[listen], exports, Serving::default()).unwrap());
    }

    pub fn address(&self) -> CacheAddress {
        CacheAddress {
            tls: None,
            endpoint: Endpoint::Unix(self.directory.path().join("proxy")),
            pool: "p".into(),
            page: PAGE as u32,
            connect: Duration::from_millis(300),
            patience: Duration::from_millis(200),
        }
    }

    /// The server's own socket, without the proxy.
    pub fn endpoint(&self) -> Endpoint {
        Endpoint::Unix(self.directory.path().join("server"))
    }

    pub fn connect(&self, name: &str) -> Client {
        let options = Options {
            contexts: vec!["tmem:pages".into()],
            ..Options::default()
        };
        Client::connect(&self.endpoint(), name, &options).unwrap()
    }
}

/// A volume whose reads are on their way for a while after they were carried out, and whose writes take their time.
pub struct Lagging {
    file: Arc<FileBacking>,
    most: u64,
    random: AtomicU64,
    /// Nothing tells whether the volume was changed.
    pub nameless: bool,
    /// Reads that were carried out are not answered; and how many of these there are.
    pub held: Arc<AtomicBool>,
    pub waiting: Arc<AtomicU64>,
}

impl Lagging {
    pub fn open(path: &Path, most: u64) -> Arc<Lagging> {
        Arc::new(Lagging::new(path, most))
    }

    pub fn new(path: &Path, most: u64) -> Lagging {
        let file = Arc::new(FileBacking::open(path, false, 16).unwrap());
        let random = AtomicU64::new(1);
        Lagging {
            file,
            most,
            random,
            nameless: false,
            held: Arc::default(),
            waiting: Arc::default(),
        }
    }

    fn lag(&self) -> Duration {
        let random = Random(
            self.random
                .fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed),
        )
        .below(self.most + 1);
        Duration::from_micros(random)
    }
}

impl Backing for Lagging {
    fn size(&self) -> u64 {
        self.file.size()
    }

    fn read(&self, offset: u64, length: usize, done: Read) {
        let lag = self.lag();
        let (held, waiting) = (self.held.clone(), self.waiting.clone());
        self.file.read(
            offset,
            length,
            Box::new(move |read| {
                waiting.fetch_add(1, Ordering::SeqCst);
                while held.load(Ordering::SeqCst) {
                    std::thread::yield_now();
                }
                std::thread::sleep(lag);
                done(read);
            }),
        );
    }

    fn change(&self, change: Change, done: Changed) {
        let (before, after, file) = (self.lag(), self.lag(), self.file.clone());
        std::thread::spawn(move || {
            std::thread::sleep(before);
            let done = Box::new(move |changed| {
                std::thread::sleep(after);
                done(changed);
            });
            file.change(change, done);
        });
    }

    fn fingerprint(&self) -> Option<String> {
        self.file.fingerprint().filter(|_| !self.nameless)
    }
}

/// A gateway that is served.
pub struct Host {
    pub gateway: Gateway,
    server: Server,
    socket: PathBuf,
    _directory: TempDir,
}

impl Host {
    pub fn start(backing: Arc<dyn Backing>, settings: Settings) -> Host {
        let directory = TempDir::new().unwrap();
        let socket = directory.path().join("nbd");
        let gateway = Gateway::start(backing, settings).unwrap();
        let exports = Exports::new();
        exports
            .add("", gateway.backend(), Access::Everybody)
            .unwrap();
        let server =
            Server::start(&[Listen::Unix(socket.clone())], exports, Serving::default()).unwrap();
        Host {
            gateway,
            server,
            socket,
            _directory: directory,
        }
    }

    pub fn connect(&self) -> Client {
        Client::connect(
            &Endpoint::Unix(self.socket.clone()),
            "",
            &Options::default(),
        )
        .unwrap()
    }

    pub fn count(&self, name: &str) -> u64 {
        let counters = self.gateway.status().counters;
        counters
            .iter()
            .find(|(counter, _)| *counter == name)
            .unwrap()
            .1
    }

    pub fn detach(self) -> bool {
        self.server.stop(LONG);
        self.gateway.detach(LONG).unwrap()
    }

    /// As a process that was killed.
    pub fn crash(self) {
        drop(self.gateway);
        self.server.stop(Duration::ZERO);
    }
}

pub fn settings(cache: &Cache, state: Option<&Path>) -> Settings {
    let tokens = state.map(|state| Tokens {
        directory: state.into(),
        key: "volume p".into(),
        trust: false,
    });
    Settings {
        cache: cache.address(),
        volume: Volume::Exclusive { tokens },
        register: None,
        max_delay: Duration::from_millis(20),
        scan: 0,
        readahead: 64 << 10,
        readahead_memory: 1 << 20,
    }
}

pub fn read(client: &Client, offset: u64, length: usize) -> Result<Vec<u8>, Failure> {
    let length = length as u32;
    client
        .call(Command::Read { offset, length }, LONG)
        .map(|answer| answer.data)
}

pub fn write(client: &Client, offset: u64, data: &[u8]) {
    client
        .call(
            Command::Write {
                offset,
                data,
                fua: false,
            },
            LONG,
        )
        .unwrap();
}
