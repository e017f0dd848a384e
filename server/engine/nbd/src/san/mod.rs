//! The SAN gateway: a volume served to its user, with reads from a cache where it has them and from the SAN where not.
//!
//! **Never a stale block.** A read gives what the volume held at some moment between its beginning and its end. Why:
//!
//! 1. The object in the cache is a random *generation*, known to this gateway alone, or content that never changes (a
//!    shared volume, read-only). A gateway that starts cold begins a new one, so nothing of before can be read. It starts
//!    warm only from the token of a clean detach, which it takes away first, and only if the volume's fingerprint is what
//!    it was: see `volume::tokens`. What two gateways put never meets in one object.
//! 2. A change begins by moving the *version* of its stripes on and marking them as changing: see `stripes`. It is
//!    acknowledged when the SAN has it, the pages it touches were flushed from the cache (or owed, see 4), and the
//!    read-ahead buffer has none of them. While a stripe is changing reads of it ask the SAN alone, and nothing they
//!    bring is put.
//! 3. What the SAN gave is put only if the version of its stripe is what it was before the SAN was asked. This is decided
//!    under the stripe's lock, under which the put also leaves on the one connection for puts and flushes. A change moves
//!    the version under that lock and sends its flush after: so an older page is either not sent, or flushed after it was
//!    put. A page that was written is put under the same rule, with the version its own change gave it.
//! 4. While the cache is away (dead, cut off, late) or rests, flushes are *owed*. It is read again only in a session of
//!    which the server lets nothing older through, and after all that was owed is flushed: see `cache::link`. What cannot be
//!    remembered any more makes the generation be given up; so does a server that is another instance than before, as one
//!    that lost power may bring flushed pages back, and a volume whose size has changed.
//! 5. When the connection to the SAN was lost the volume may be another: before anything of it is asked again, all versions
//!    move on, the read-ahead buffer is emptied and the generation given up. So nothing that was kept, or read and not yet
//!    put, is seen after. Of a shared volume the cache is kept, as its content is what its name says.
//! 6. What the read-ahead buffer gives is fetched by these rules, and no older than the last change: see `readahead`.
//!
//! **First do no harm.** A cache read has a bound that follows the SAN's own latency; beyond it the SAN answers. A cache
//! that is slower than the SAN, or late several times in a row, is left alone and tried now and then: see `cache::usefulness`. Pages
//! that were surely never put are not asked for, and where hits are rare both are asked at once. Puts wait for nobody and
//! nobody waits for puts: see `putting`. Scans are not put, and of a working set that does not fit only part is.
//!
//! Layers, lower first: `stripes`, `counters`, `readahead`; `volume` and `cache`; `shared`; `reads`, `changes`, `putting`; the gateway. Locking: a stripe,
//! then `cache::link`, the queue of puts or the buffer.

mod bytes;
mod cache;
mod changes;
mod counters;
mod exposition;
mod putting;
mod readahead;
mod reads;
mod shared;
mod stripes;
mod volume;

pub use cache::link::CacheAddress;
pub use counters::{Histogram, Status};
pub use exposition::exposition;
pub use volume::backing::{Backing, Change, Changed, FileBacking, Lost, Read};
pub use volume::register::{Register, default_state};
pub use volume::remote::NbdBacking;
pub use volume::tokens::Tokens;

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::{Duration, Instant};

use crate::backend::{Backend, ExportInfo, Later, Reply, Request, Served};
use crate::protocol::Errno;
use bytes::random;
use cache::link::{Generation, Link};
use cache::presence::Seen;
use cache::put_queue::Puts;
use cache::usefulness::Judge;
use counters::Counters;
use readahead::buffer::Ahead;
use shared::{Busy, Shared};
use stripes::Stripes;
use volume::register::Hold;
use volume::tokens::Voided;

/// How a gateway looks for what it needs, and when it leaves the cache alone. Sizes in bytes.
#[derive(Clone, Debug)]
pub struct Settings {
    pub cache: CacheAddress,
    pub volume: Volume,
    /// Through which gateways of this host know of each other; None: they do not.
    pub register: Option<Register>,
    /// A cache read takes no longer; less where the SAN is fast.
    pub max_delay: Duration,
    /// What is read in a row beyond this is not put; 0: all is.
    pub scan: u64,
    /// Most that is read ahead of a stream; 0: nothing is.
    pub readahead: u64,
    /// Most that was read ahead and not yet asked for.
    pub readahead_memory: u64,
}

/// Who uses the volume, and thereby what its pages are called.
#[derive(Clone, Debug)]
pub enum Volume {
    /// Nobody writes to it; every host names its content by the same object.
    Shared { object: [u8; 24] },
    /// Only this gateway writes to it.
    Exclusive { tokens: Option<Tokens> },
}

/// A volume with its cache. Serve it by a [`crate::Server`]; detach, or drop it as a crash would.
pub struct Gateway {
    shared: Arc<Shared>,
    tokens: Option<Tokens>,
    register: Option<Register>,
    warm: bool,
    _holds: Vec<Hold>,
}

/// Under what name a volume's pages are cached to begin with.
struct Begun {
    shared: bool,
    warm: bool,
    generation: Generation,
    tokens: Option<Tokens>,
}

impl Begun {
    fn of(volume: Volume, register: Option<&Register>, backing: &dyn Backing) -> io::Result<Begun> {
        let (shared, object, tokens) = match volume {
            Volume::Shared { object } => (true, object, None),
            Volume::Exclusive { tokens } => (false, random(), tokens),
        };
        let voided = match register {
            Some(register) if !shared => Voided::of(register, backing)?,
            _ => Voided::default(),
        };
        let token = tokens.as_ref();
        let token = token.map(|tokens| tokens.consume(backing, &voided));
        let token = token.transpose()?.flatten();
        Ok(Begun {
            shared,
            warm: token.is_some(),
            generation: token.unwrap_or(Generation {
                object,
                instance: None,
            }),
            tokens,
        })
    }
}

impl Gateway {
    /// Begin to serve a volume. The cache need not be there yet.
    pub fn start(backing: Arc<dyn Backing>, settings: Settings) -> io::Result<Gateway> {
        let page = u64::from(settings.cache.page);
        if backing.size().div_ceil(page) > 1 << 32 {
            let why =
                format!("the volume has more than 2^32 pages of {page} bytes: use larger pages");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        }
        let shares = matches!(settings.volume, Volume::Shared { .. });
        let holds = hold(settings.register.as_ref(), &*backing, shares)?;
        backing.claim(!shares)?;
        let begun = Begun::of(settings.volume, settings.register.as_ref(), &*backing)?;
        let counters = Arc::new(Counters::default());
        let judge = Arc::new(Judge::new(settings.max_delay));
        // Of a shared pool all is asked; what others put there is no loss when it is not found.
        let all = begun.warm && !begun.shared;
        let seen = Arc::new(Seen::new(backing.size().div_ceil(page), all));
        let of = (counters.clone(), judge.clone(), seen.clone());
        let link = Link::new(
            settings.cache,
            begun.shared,
            begun.generation,
            of.0,
            of.1,
            of.2,
        );
        let shared = Arc::new(Shared {
            size: backing.size().into(),
            fingerprint: if begun.shared {
                backing.fingerprint()
            } else {
                None
            },
            backing,
            link: Arc::new(link),
            stripes: Stripes::default(),
            puts: Puts::default(),
            ahead: Ahead::new(settings.readahead / page, settings.readahead_memory / page),
            judge,
            seen,
            counters,
            hit_latency: Histogram::default(),
            miss_latency: Histogram::default(),
            page,
            scan: settings.scan / page,
            read_only: begun.shared,
            busy: AtomicU64::new(0),
            stopped: AtomicBool::new(false),
        });
        let (putter, keeper) = (shared.clone(), Arc::downgrade(&shared));
        let link = shared.link.clone();
        let spawn = |name: &str| thread::Builder::new().name(name.into());
        let lost = Arc::downgrade(&shared);
        shared.backing.watch(Box::new(move || forget_all(&lost)));
        spawn("san-put").spawn(move || putting::run(&putter))?;
        spawn("san-keep").spawn(move || link.keep(|| tend(&keeper)))?;
        Ok(Gateway {
            shared,
            tokens: begun.tokens,
            register: settings.register,
            warm: begun.warm,
            _holds: holds,
        })
    }

    /// Whether pages of before may be used.
    pub fn is_warm(&self) -> bool {
        self.warm
    }

    /// What to serve.
    pub fn backend(&self) -> Arc<dyn Backend> {
        Arc::new(Export(self.shared.clone()))
    }

    /// Wait until the cache is used.
    pub fn wait_cache(&self, limit: Duration) -> bool {
        self.shared.link.wait_up(limit)
    }

    /// Wait until nothing is under way, puts included.
    pub fn wait_idle(&self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        let idle = || self.shared.busy.load(Ordering::SeqCst) == 0 && self.shared.puts.is_idle();
        while !idle() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(1));
        }
        idle()
    }

    pub fn status(&self) -> Status {
        let shared = &self.shared;
        let (cache_micros, san_micros) = shared.judge.means();
        Status {
            counters: shared.counters.fields(),
            cache_down: shared.link.why_down(),
            san_down: shared.backing.why_down(),
            cache_micros,
            san_micros,
            hit_latency: shared.hit_latency.read(),
            miss_latency: shared.miss_latency.read(),
        }
    }

    /// Stop as cleanly as can be: what is under way ends, what was written is made durable, and a token is left for a warm
    /// start; whether one was. Requests that come later are refused.
    pub fn detach(&self, limit: Duration) -> io::Result<bool> {
        let shared = &self.shared;
        shared.stopped.store(true, Ordering::SeqCst);
        let idle = self.wait_idle(limit);
        let (sender, receiver) = std::sync::mpsc::sync_channel(1);
        let flushed = Box::new(move |result| {
            let _ = sender.send(result);
        });
        if !shared.read_only {
            shared.backing.change(Change::Flush, flushed);
            let flushed = receiver.recv_timeout(limit);
            if !matches!(flushed, Ok(Ok(()))) {
                return Err(io::Error::other(
                    "the SAN could not make what was written durable",
                ));
            }
        }
        shared.link.wait_paid();
        let generation = shared.link.stop();
        match (&self.tokens, generation) {
            (Some(tokens), Some(generation)) if idle => {
                tokens.leave(&*shared.backing, self.register.as_ref(), &generation)
            }
            _ => Ok(false),
        }
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::SeqCst);
        self.shared.puts.stop();
        self.shared.link.stop();
    }
}

/// Those that share write nothing: where they cannot be noted, as in a system that is read-only, they do without.
fn hold(register: Option<&Register>, backing: &dyn Backing, shares: bool) -> io::Result<Vec<Hold>> {
    let Some(register) = register else {
        return Ok(Vec::new());
    };
    match register.hold(&backing.names(), !shares) {
        Err(error) if shares && error.kind() != io::ErrorKind::ResourceBusy => Ok(Vec::new()),
        held => held,
    }
}

/// What the keeper does now and then: see whether the volume is as large as before.
fn tend(shared: &Weak<Shared>) {
    let Some(shared) = shared.upgrade() else {
        return;
    };
    let size = shared.backing.size();
    let resized = shared.size.swap(size, Ordering::SeqCst) != size;
    let changed =
        shared.fingerprint.is_some() && shared.fingerprint != shared.backing.fingerprint();
    if resized || (changed && !shared.link.is_renewed()) {
        shared.link.renew("the volume has changed");
    }
}

/// The connection to the SAN was lost, and with it the certainty of what the volume holds.
fn forget_all(shared: &Weak<Shared>) {
    let Some(shared) = shared.upgrade() else {
        return;
    };
    let all = 0..1 << 40;
    let changing = shared.stripes.begin(&all);
    shared.ahead.invalidate(&all);
    if !shared.read_only {
        shared.link.renew("the connection to the SAN was lost");
    }
    shared.stripes.end(&changing);
    shared.counters.san_sessions_lost.add(1);
}

/// The volume as the server sees it.
struct Export(Arc<Shared>);

impl Backend for Export {
    fn info(&self) -> ExportInfo {
        let block = self.0.backing.minimum_block();
        ExportInfo {
            description: "a volume through tmem".into(),
            read_only: self.0.read_only,
            multi_conn: true,
            minimum_block: block,
            preferred_block: block.max(ExportInfo::default().preferred_block),
            ..ExportInfo::default()
        }
    }

    fn size(&self) -> u64 {
        self.0.size.load(Ordering::Relaxed)
    }

    fn serve(&self, request: Request<'_>, reply: &mut Reply<'_>, later: &Later<'_>) -> Served {
        let shared = &self.0;
        let busy = Busy::new(shared);
        if shared.stopped.load(Ordering::SeqCst) {
            return Served::Now(Err(Errno::Shutdown));
        }
        let change = match request {
            Request::Read { offset, length } => {
                reads::serve(shared, offset, length, later.take(), busy);
                return Served::Later;
            }
            Request::Cache { offset, length } => {
                reads::prefetch(shared, offset, length);
                return Served::Now(Ok(()));
            }
            Request::BlockStatus {
                length, contexts, ..
            } => {
                for context in contexts.iter() {
                    reply.begin(context);
                    reply.extent(length.into(), 0);
                }
                return Served::Now(Ok(()));
            }
            Request::WriteZeroes { fast: true, .. } => {
                return Served::Now(Err(Errno::NotSupported));
            }
            Request::Write { offset, data, fua } => {
                let data = Arc::new(data.to_vec());
                Change::Write { offset, data, fua }
            }
            Request::Trim { offset, length, .. } => Change::Trim { offset, length },
            Request::WriteZeroes {
                offset,
                length,
                no_hole,
                ..
            } => Change::Zero {
                offset,
                length,
                no_hole,
            },
            Request::Flush => Change::Flush,
        };
        let fua = matches!(
            request,
            Request::Trim { fua: true, .. } | Request::WriteZeroes { fua: true, .. }
        );
        changes::serve(shared, change, fua, later.take(), busy);
        Served::Later
    }
}
