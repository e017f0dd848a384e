//! Seeded sessions gone wrong, given to a server on a socket for a bounded time.
//!
//! The server and its client are this test binary, started again, in which a panic of any thread is the end; it names each
//! seed before it begins. So a crash, a signal or a hang is a failure with its seed. `TMEM_FUZZ_SECONDS` is the time each
//! fuzzer takes (5); `TMEM_FUZZ_SEED` the first seed, to see one again.

#[path = "../../core/tests/support/mod.rs"]
mod support;

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use support::{Random, Scratch, oid, persistent, setting, store};
use tmem_nbd::protocol::{
    BASE_ALLOCATION, CHUNK_MAGIC, Chunk, MAX_DATA, OPTION_MAGIC, REQUEST_MAGIC, SIMPLE_REPLY_MAGIC,
    chunk, command, option, reply,
};
use tmem_nbd::{Access, Exports, Listen, PoolExport, PoolExportSettings, Server, Settings};

const CHILD: &str = "TMEM_NBD_FUZZ_CHILD";
/// No case takes this long, on however slow a machine.
const HANG: Duration = Duration::from_secs(60);
const PAGE: u64 = 4096;
const SIZE: u64 = 1 << 20;
/// More than the server may hold for one client, on top of its arena.
const MEMORY: u64 = 256 << 20;
const FUZZED: &str = "fuzzed";
const WITNESS: &str = "witness";

/// Run a fuzzer in a process of its own until its time is up.
fn drive(fuzzer: &str) {
    let mut seed = setting("TMEM_FUZZ_SEED", 1);
    let mut child = Command::new(std::env::current_exe().expect("this test binary"))
        .args(["--exact", "child", "--nocapture", "--test-threads", "1"])
        .env(CHILD, fuzzer)
        .stderr(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .expect("a fuzzer starts");
    let (send, lines) = channel();
    let stderr = BufReader::new(child.stderr.take().expect("piped"));
    std::thread::spawn(move || {
        stderr
            .lines()
            .map_while(Result::ok)
            .try_for_each(|line| send.send(line))
    });
    let (mut cases, mut words, mut end) = (0, String::new(), "");
    loop {
        match lines.recv_timeout(HANG) {
            Ok(line) if line.starts_with("case ") => {
                seed = line[5..].parse().expect("a seed");
                cases += 1;
            }
            Ok(line) => words = words + &line + "\n",
            Err(RecvTimeoutError::Timeout) => {
                child.kill().expect("it hangs, and can be killed");
                end = "hangs";
                break;
            }
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    let status = child.wait().expect("it is our child");
    assert!(
        status.success() && end.is_empty(),
        "{fuzzer}: TMEM_FUZZ_SEED={seed} {end} {status}\n{words}"
    );
    println!("{fuzzer}: {cases} cases");
    assert!(cases > 0);
}

/// What the process of a fuzzer does.
#[test]
fn child() {
    let Ok(fuzzer) = std::env::var(CHILD) else {
        return;
    };
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        usual(panic);
        std::process::abort();
    }));
    let end = Instant::now() + Duration::from_secs(setting("TMEM_FUZZ_SECONDS", 5));
    let target = Target::new(&fuzzer);
    for seed in setting("TMEM_FUZZ_SEED", 1).. {
        eprintln!("case {seed}");
        let mut random = Random::new(seed);
        match fuzzer.as_str() {
            "handshake" => target.handshake(&mut random),
            _ => target.transmission(&mut random),
        }
        target.others_are_served(seed);
        if Instant::now() > end {
            break;
        }
    }
    assert!(resident() < MEMORY, "{} bytes are resident", resident());
}

/// Any bytes instead of a handshake end the connection or are answered, and trouble nobody else.
#[test]
fn a_handshake_of_any_bytes_is_answered_or_ended() {
    drive("handshake");
}

/// Any bytes instead of commands are answered with sound replies or end the connection, and change no other export.
#[test]
fn commands_of_any_bytes_are_answered_or_ended() {
    drive("transmission");
}

struct Target {
    _server: Server,
    _socket: Scratch,
    path: std::path::PathBuf,
}

impl Target {
    fn new(fuzzer: &str) -> Target {
        let pool = store(32 << 20, 2)
            .pool("fuzzed", &persistent())
            .expect("a pool");
        let exports = Exports::new();
        for (number, name) in [FUZZED, WITNESS].into_iter().enumerate() {
            let settings = PoolExportSettings {
                multi_conn: true,
                ..PoolExportSettings::default()
            };
            let export = PoolExport::new(pool.clone(), oid(number as u64), SIZE, settings)
                .expect("an export");
            exports
                .add(name, Arc::new(export), Access::Everybody)
                .expect("a new name");
        }
        let socket = Scratch::new(&format!("nbd-fuzz-{fuzzer}"));
        let path = socket.0.clone();
        let server = Server::start(&[Listen::Unix(path.clone())], exports, Settings::default())
            .expect("it listens");
        Target {
            _server: server,
            _socket: socket,
            path,
        }
    }

    fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(&self.path).expect("the server is there");
        stream.set_read_timeout(Some(HANG)).expect("a time-out");
        stream.set_write_timeout(Some(HANG)).expect("a time-out");
        stream
    }

    fn handshake(&self, random: &mut Random) {
        let mut session = 3u32.to_be_bytes().to_vec();
        for _ in 0..random.below(6) {
            session.extend(any_option(random));
        }
        if random.chance(2) {
            session.extend(go(FUZZED));
            session.extend(any_command(random));
        }
        damage(random, &mut session);
        let answers = self.exchange(random, &session);
        assert!(answers.starts_with(b"NBDMAGICIHAVEOPT") || answers.is_empty());
    }

    fn transmission(&self, random: &mut Random) {
        let mut before = 3u32.to_be_bytes().to_vec();
        before.extend(option_bytes(option::STRUCTURED_REPLY, &[]));
        before.extend(option_bytes(
            option::SET_META_CONTEXT,
            &contexts(FUZZED, &[BASE_ALLOCATION]),
        ));
        before.extend(go(FUZZED));
        let mut commands = Vec::new();
        for _ in 0..=random.below(12) {
            commands.extend(any_command(random));
        }
        damage(random, &mut commands);
        before.extend(commands);
        let answers = self.exchange(random, &before);
        check_replies(&answers);
    }

    /// Send a session in pieces, and hear what is answered to its end; now and then go without hearing it.
    fn exchange(&self, random: &mut Random, session: &[u8]) -> Vec<u8> {
        let stream = self.connect();
        let mut reader = stream.try_clone().expect("one more handle");
        let listening = std::thread::spawn(move || {
            let mut answers = Vec::new();
            match reader.read_to_end(&mut answers) {
                Err(error) if error.kind() != ErrorKind::ConnectionReset => {
                    panic!("no end: {error}")
                }
                _ => answers,
            }
        });
        let mut rest = session;
        while !rest.is_empty() {
            let piece = if random.chance(3) {
                1 + random.below(40) as usize
            } else {
                rest.len()
            };
            let (now, later) = rest.split_at(piece.min(rest.len()));
            if (&stream).write_all(now).is_err() {
                break;
            }
            rest = later;
        }
        let how = if random.chance(4) {
            Shutdown::Both
        } else {
            Shutdown::Write
        };
        let _ = stream.shutdown(how);
        listening.join().expect("it reads to the end")
    }

    /// A new client finds the other export as the last one left it.
    fn others_are_served(&self, seed: u64) {
        let mut session = 3u32.to_be_bytes().to_vec();
        session.extend(go(WITNESS));
        let index = seed % (SIZE / PAGE);
        session.extend(command_bytes(
            command::READ,
            0,
            ((index + 255) % 256) * PAGE,
            PAGE as u32,
            &[],
        ));
        let page = support::page(support::Fill::Text, index, seed, PAGE as usize);
        session.extend(command_bytes(
            command::WRITE,
            0,
            index * PAGE,
            PAGE as u32,
            &page,
        ));
        session.extend(command_bytes(command::DISC, 0, 0, 0, &[]));
        let mut stream = self.connect();
        stream
            .write_all(&session)
            .expect("a sound session is heard");
        let mut answers = Vec::new();
        stream
            .read_to_end(&mut answers)
            .expect("it is answered and ended");
        let [read, write] = [answers.len() - 32 - PAGE as usize, answers.len() - 16];
        for at in [read, write] {
            assert_eq!(
                answers[at..at + 8],
                [&SIMPLE_REPLY_MAGIC.to_be_bytes()[..], &[0; 4]].concat()
            );
        }
        let found = support::read(&answers[read + 16..write]);
        let first = setting("TMEM_FUZZ_SEED", 1);
        let expected = (seed > first).then(|| ((seed - 1) % (SIZE / PAGE), seed - 1));
        assert_eq!(found.filter(|_| expected.is_some()), expected);
    }
}

/// After the handshake's answers: chunks and simple replies, whole, and nothing else.
fn check_replies(answers: &[u8]) {
    let Some(mut at) = after_handshake(answers) else {
        return;
    };
    while at < answers.len() {
        let rest = &answers[at..];
        match rest
            .get(..4)
            .map(|magic| u32::from_be_bytes(magic.try_into().expect("4 bytes")))
        {
            Some(CHUNK_MAGIC) if rest.len() >= Chunk::SIZE => {
                let kind = u16::from_be_bytes([rest[6], rest[7]]);
                let length = u32::from_be_bytes(rest[16..20].try_into().expect("4 bytes"));
                let known = [
                    chunk::NONE,
                    chunk::OFFSET_DATA,
                    chunk::OFFSET_HOLE,
                    chunk::BLOCK_STATUS,
                    chunk::ERROR,
                ];
                assert!(known.contains(&kind), "a chunk of type {kind}");
                assert!(length <= MAX_DATA + 8, "a chunk of {length}");
                at += Chunk::SIZE + length as usize;
            }
            Some(SIMPLE_REPLY_MAGIC) => at += 16,
            Some(magic) if magic != CHUNK_MAGIC => panic!("{magic:#x} is no reply"),
            _ => return,
        }
    }
}

/// Where the answers to commands begin; None if the client did not wait for it.
fn after_handshake(answers: &[u8]) -> Option<usize> {
    let (mut at, mut acknowledged) = (18, 0);
    while acknowledged < 3 {
        let head = answers.get(at..at + 20)?;
        let kind = u32::from_be_bytes(head[12..16].try_into().expect("4 bytes"));
        assert!(kind < 1 << 31, "a sound option is refused: {kind:#x}");
        acknowledged += u32::from(kind == reply::ACK);
        at += 20 + u32::from_be_bytes(head[16..].try_into().expect("4 bytes")) as usize;
    }
    Some(at)
}

// --- sessions ---

fn option_bytes(kind: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = OPTION_MAGIC.to_be_bytes().to_vec();
    bytes.extend(kind.to_be_bytes());
    bytes.extend((data.len() as u32).to_be_bytes());
    bytes.extend(data);
    bytes
}

fn text(words: &str) -> Vec<u8> {
    let mut bytes = (words.len() as u32).to_be_bytes().to_vec();
    bytes.extend(words.as_bytes());
    bytes
}

fn info(name: &str, wanted: &[u16]) -> Vec<u8> {
    let mut bytes = text(name);
    bytes.extend((wanted.len() as u16).to_be_bytes());
    wanted
        .iter()
        .for_each(|kind| bytes.extend(kind.to_be_bytes()));
    bytes
}

fn contexts(name: &str, queries: &[&str]) -> Vec<u8> {
    let mut bytes = text(name);
    bytes.extend((queries.len() as u32).to_be_bytes());
    queries.iter().for_each(|query| bytes.extend(text(query)));
    bytes
}

fn go(name: &str) -> Vec<u8> {
    option_bytes(option::GO, &info(name, &[3]))
}

fn any_option(random: &mut Random) -> Vec<u8> {
    let name = ["", FUZZED, "nothing", "é", "x\0y"][random.below(5) as usize];
    let data = match random.below(4) {
        0 => Vec::new(),
        1 => info(name, &[0, 1, 2, 3, 9][..random.below(6) as usize]),
        2 => contexts(
            name,
            &[BASE_ALLOCATION, "base:", "tmem:pages", "x"][..random.below(5) as usize],
        ),
        _ => noise(random, 200),
    };
    option_bytes(random.below(13) as u32, &data)
}

fn command_bytes(kind: u16, flags: u16, offset: u64, length: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = REQUEST_MAGIC.to_be_bytes().to_vec();
    bytes.extend(flags.to_be_bytes());
    bytes.extend(kind.to_be_bytes());
    bytes.extend(offset.rotate_left(17).to_be_bytes());
    bytes.extend(offset.to_be_bytes());
    bytes.extend(length.to_be_bytes());
    bytes.extend(data);
    bytes
}

fn any_command(random: &mut Random) -> Vec<u8> {
    let edges = [
        0,
        1,
        PAGE - 1,
        PAGE,
        SIZE - 1,
        SIZE,
        SIZE + 1,
        u64::MAX - PAGE,
        u64::MAX,
    ];
    let offset = match random.below(3) {
        0 => edges[random.below(9) as usize],
        1 => random.below(SIZE / PAGE) * PAGE,
        _ => random.below(SIZE),
    };
    let lengths = [
        0,
        1,
        511,
        512,
        PAGE as u32,
        3 * PAGE as u32,
        SIZE as u32,
        MAX_DATA,
        MAX_DATA + 1,
        u32::MAX,
    ];
    let length = lengths[random.below(10) as usize];
    let kind = random.below(10) as u16;
    let flags = if random.chance(3) {
        random.word() as u16
    } else {
        1 << random.below(6) & !32
    };
    let data = if kind == command::WRITE && !random.chance(10) {
        noise(random, u64::from(length).min(20_000))
    } else {
        Vec::new()
    };
    let length = if data.is_empty() {
        length
    } else {
        data.len() as u32
    };
    command_bytes(kind, flags, offset, length, &data)
}

fn noise(random: &mut Random, most: u64) -> Vec<u8> {
    (0..random.below(most))
        .map(|_| random.word() as u8)
        .collect()
}

/// Change, cut, double or add bytes; or leave all as it is.
fn damage(random: &mut Random, session: &mut Vec<u8>) {
    for _ in 0..random.below(4) {
        let at = random.below(session.len() as u64) as usize;
        match random.below(5) {
            _ if session.is_empty() => {}
            0 => session[at] ^= 1 << random.below(8),
            1 => session[at] = [0, 1, 0x7f, 0x80, 0xff][random.below(5) as usize],
            2 => session.truncate(at),
            3 => {
                let end = (at + random.below(60) as usize).min(session.len());
                session.splice(at..end, noise(random, 60));
            }
            _ => {
                let again = session[at..].to_vec();
                session.extend(again);
            }
        }
    }
}

fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/statm").expect("Linux");
    let pages = status.split(' ').nth(1).expect("a second number");
    pages.parse::<u64>().expect("a number") * 4096
}
