//! A server of one's own, and a client that speaks plainly to it.

#![allow(dead_code)]

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use tmem_core::{Codec, Kind, Oid, Pool, PoolSettings, Store, StoreOptions};
use tmem_nbd::protocol::{
    BASE_ALLOCATION, CHUNK_MAGIC, Chunk, Errno, OPTION_MAGIC, OptionReply, OptionRequest,
    RequestHeader, SERVER_MAGIC, SimpleReply, chunk, command, option, reply,
};
use tmem_nbd::{
    Access, Backend, Exports, Listen, PoolExport, PoolExportSettings, Server, Settings,
};

pub const OID: Oid = Oid([7; 24]);
/// What ends only a test that fails.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A path that no other test uses.
pub fn path() -> PathBuf {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    std::env::temp_dir().join(format!("tmem-nbd-{}-{number}.sock", std::process::id()))
}

pub fn pool(memory: u64) -> Pool {
    pool_of(memory, Codec::Lz4 { acceleration: 1 }, 4096)
}

pub fn pool_of(memory: u64, codec: Codec, page_size: u32) -> Pool {
    let options = StoreOptions {
        memory,
        ..StoreOptions::default()
    };
    let store = Store::open(&options).unwrap();
    let settings = PoolSettings {
        codec,
        page_size,
        ..PoolSettings::new(Kind::Persistent)
    };
    store.pool("disk", &settings).unwrap()
}

pub fn disk(size: u64, multi_conn: bool) -> Arc<PoolExport> {
    let settings = PoolExportSettings {
        multi_conn,
        ..PoolExportSettings::default()
    };
    Arc::new(PoolExport::new(pool(64 << 20), OID, size, settings).unwrap())
}

/// A server of one export, named `disk`.
pub struct Served {
    pub server: Server,
    pub exports: Arc<Exports>,
    pub path: PathBuf,
}

pub fn serve(backend: Arc<dyn Backend>) -> Served {
    serve_with(backend, Settings::default())
}

pub fn serve_with(backend: Arc<dyn Backend>, settings: Settings) -> Served {
    let (exports, path) = (Exports::new(), path());
    exports.add("disk", backend, Access::Everybody).unwrap();
    let listen = [Listen::Unix(path.clone())];
    let server = Server::start(&listen, exports.clone(), settings).unwrap();
    Served {
        server,
        exports,
        path,
    }
}

impl Served {
    pub fn connect(&self, structured: bool) -> Wire {
        self.try_connect(structured).unwrap()
    }

    /// A client of the export, or the error and words it was refused with.
    pub fn try_connect(&self, structured: bool) -> Result<Wire, (u32, String)> {
        let mut wire = Wire::greet(UnixStream::connect(&self.path).unwrap());
        if structured {
            wire.option(option::STRUCTURED_REPLY, &[]);
            assert_eq!(wire.option_reply().0, reply::ACK);
            let context = [&name("disk")[..], &[0, 0, 0, 1], &name(BASE_ALLOCATION)].concat();
            wire.option(option::SET_META_CONTEXT, &context);
            assert_eq!(wire.option_reply().0, reply::META_CONTEXT);
            assert_eq!(wire.option_reply().0, reply::ACK);
            wire.structured = true;
        }
        wire.go("disk").map(|()| wire)
    }
}

/// A string after its length.
pub fn name(text: &str) -> Vec<u8> {
    let mut bytes = (text.len() as u32).to_be_bytes().to_vec();
    bytes.extend_from_slice(text.as_bytes());
    bytes
}

/// Wait for what must become so.
pub fn eventually(mut so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !so() {
        assert!(Instant::now() < deadline, "it never came to be");
        std::thread::yield_now();
    }
}

/// Bytes to and from a server.
pub trait Stream: Read + Write + Send {}

impl<S: Read + Write + Send> Stream for S {}

/// One connection.
pub struct Wire {
    pub stream: Box<dyn Stream>,
    pub structured: bool,
    pub cookie: u64,
    pub size: u64,
}

/// What a reply brought.
#[derive(Debug, Default)]
pub struct Answer {
    pub cookie: u64,
    pub data: Vec<(u64, Vec<u8>)>,
    pub holes: Vec<(u64, u32)>,
    pub extents: Vec<(u32, u32)>,
    pub chunks: usize,
    pub error: Option<Errno>,
}

impl Wire {
    pub fn greet(stream: UnixStream) -> Wire {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        let mut wire = Wire {
            stream: Box::new(stream),
            structured: false,
            cookie: 0,
            size: 0,
        };
        let greeting = wire.take(18);
        assert_eq!(greeting[..8], SERVER_MAGIC.to_be_bytes());
        assert_eq!(greeting[8..16], OPTION_MAGIC.to_be_bytes());
        wire.send(&3u32.to_be_bytes());
        wire
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    pub fn take(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        self.stream.read_exact(&mut bytes).unwrap();
        bytes
    }

    /// Whether the server has closed the connection, having sent nothing more.
    pub fn is_closed(&mut self) -> bool {
        matches!(self.stream.read(&mut [0; 1]), Ok(0) | Err(_))
    }

    pub fn option(&mut self, option: u32, data: &[u8]) {
        let length = data.len() as u32;
        self.send(&OptionRequest { option, length }.bytes());
        self.send(data);
    }

    pub fn option_reply(&mut self) -> (u32, Vec<u8>) {
        let head = self.take(OptionReply::SIZE);
        let head = OptionReply::parse(head[..].try_into().unwrap()).unwrap();
        (head.kind, self.take(head.length as usize))
    }

    pub fn go(&mut self, export: &str) -> Result<(), (u32, String)> {
        self.option(option::GO, &[&name(export)[..], &[0, 1, 0, 3]].concat());
        loop {
            match self.option_reply() {
                (reply::ACK, _) => return Ok(()),
                (reply::INFO, data) if data[..2] == [0, 0] => {
                    self.size = u64::from_be_bytes(data[2..10].try_into().unwrap());
                }
                (reply::INFO, _) => {}
                (error, why) => return Err((error, String::from_utf8(why).unwrap())),
            }
        }
    }

    /// Send a command without waiting for its reply; its cookie.
    pub fn ask(&mut self, command: u16, flags: u16, offset: u64, length: u32, data: &[u8]) -> u64 {
        self.cookie += 1;
        let header = RequestHeader {
            flags,
            command,
            cookie: self.cookie,
            offset,
            length,
        };
        self.send(&[&header.bytes()[..], data].concat());
        self.cookie
    }

    /// The next reply; of a simple one `length` bytes of data if it is none of an error.
    pub fn answer(&mut self, length: u32) -> Answer {
        let mut answer = Answer::default();
        loop {
            let magic = self.take(4);
            if magic != CHUNK_MAGIC.to_be_bytes() {
                let head = [magic, self.take(SimpleReply::SIZE - 4)].concat();
                let head = SimpleReply::parse(head[..].try_into().unwrap()).unwrap();
                answer.cookie = head.cookie;
                answer.error = Errno::from_number(head.error);
                if answer.error.is_none() && length > 0 {
                    answer.data.push((u64::MAX, self.take(length as usize)));
                }
                return answer;
            }
            let head = [magic, self.take(Chunk::SIZE - 4)].concat();
            let head = Chunk::parse(head[..].try_into().unwrap()).unwrap();
            let body = self.take(head.length as usize);
            answer.cookie = head.cookie;
            answer.chunks += 1;
            let number = |at| u32::from_be_bytes(body[at..at + 4].try_into().unwrap());
            let offset = || u64::from_be_bytes(body[..8].try_into().unwrap());
            match head.kind {
                chunk::OFFSET_DATA => answer.data.push((offset(), body[8..].to_vec())),
                chunk::OFFSET_HOLE => answer.holes.push((offset(), number(8))),
                chunk::BLOCK_STATUS => {
                    let extents = (4..body.len()).step_by(8);
                    answer.extents = extents.map(|at| (number(at), number(at + 4))).collect();
                }
                chunk::ERROR => answer.error = Errno::from_number(number(0)),
                other => panic!("a chunk of type {other}"),
            }
            if head.flags & chunk::DONE != 0 {
                return answer;
            }
        }
    }

    pub fn run(&mut self, command: u16, flags: u16, offset: u64, length: u32) -> Option<Errno> {
        let cookie = self.ask(command, flags, offset, length, &[]);
        let answer = self.answer(0);
        assert_eq!(answer.cookie, cookie);
        answer.error
    }

    pub fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), Errno> {
        let cookie = self.ask(command::WRITE, 0, offset, data.len() as u32, data);
        let answer = self.answer(0);
        assert_eq!(answer.cookie, cookie);
        answer.error.map_or(Ok(()), Err)
    }

    pub fn read(&mut self, offset: u64, length: u32) -> Result<Vec<u8>, Errno> {
        self.read_with(0, offset, length).0
    }

    /// Read, and put the pieces together; also how many chunks came. Each byte must come once.
    pub fn read_with(
        &mut self,
        flags: u16,
        offset: u64,
        length: u32,
    ) -> (Result<Vec<u8>, Errno>, usize) {
        let cookie = self.ask(command::READ, flags, offset, length, &[]);
        let answer = self.answer(length);
        assert_eq!(answer.cookie, cookie);
        if let Some(errno) = answer.error {
            return (Err(errno), answer.chunks);
        }
        let mut bytes: Vec<Option<u8>> = vec![None; length as usize];
        let holes = answer.holes.into_iter();
        let holes = holes.map(|(at, length)| (at, vec![0; length as usize]));
        for (at, data) in answer.data.into_iter().chain(holes) {
            let at = if at == u64::MAX {
                0
            } else {
                (at - offset) as usize
            };
            for (slot, byte) in bytes[at..].iter_mut().zip(&data) {
                assert_eq!(slot.replace(*byte), None, "a byte came twice");
            }
            assert!(
                at + data.len() <= length as usize,
                "more came than was asked"
            );
        }
        let bytes = bytes
            .into_iter()
            .map(|byte| byte.expect("a byte is missing"));
        (Ok(bytes.collect()), answer.chunks)
    }
}
