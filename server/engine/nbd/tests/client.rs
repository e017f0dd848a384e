//! The client against nbdkit, which is another's server, and against servers that lie.

#[path = "support/nbdkit.rs"]
mod nbdkit;

use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use nbdkit::Nbdkit;
use tmem_nbd::Errno;
use tmem_nbd::client::{Client, Command, ConnectError, Endpoint, Failure, Options};
use tmem_nbd::protocol::{Chunk, OptionReply, OptionRequest, RequestHeader};
use tmem_nbd::protocol::{OPTION_MAGIC, SERVER_MAGIC, SimpleReply, chunk, info, option, reply};

const LONG: Duration = Duration::from_secs(60);

fn connect(server: &Nbdkit) -> Client {
    Client::connect(&Endpoint::Unix(server.socket()), "", &Options::default()).unwrap()
}

#[test]
fn nbdkit_keeps_what_is_written_and_forgets_what_is_trimmed() {
    let Some(server) = Nbdkit::start(&["memory", "16M"]) else {
        return;
    };
    let client = connect(&server);
    assert_eq!(client.opened().size, 16 << 20);
    let data: Vec<u8> = (0..100_000u32).map(|n| (n % 251) as u8).collect();
    let write = Command::Write {
        offset: 12345,
        data: &data,
        fua: false,
    };
    client.call(write, LONG).unwrap();
    let read = |offset, length| {
        client
            .call(Command::Read { offset, length }, LONG)
            .unwrap()
            .data
    };
    assert_eq!(read(12345, 100_000), data);
    client
        .call(
            Command::Trim {
                offset: 8192,
                length: 32768,
            },
            LONG,
        )
        .unwrap();
    assert_eq!(read(8192, 32768), vec![0; 32768]);
    client.call(Command::Flush, LONG).unwrap();
    let beyond = Command::Read {
        offset: 16 << 20,
        length: 4096,
    };
    assert_eq!(
        client.call(beyond, LONG),
        Err(Failure::Errno(Errno::Invalid))
    );
}

#[test]
fn many_commands_are_under_way_at_once_and_each_is_answered() {
    let Some(server) = Nbdkit::start(&["--filter=delay", "memory", "1M", "rdelay=100ms"]) else {
        return;
    };
    let client = connect(&server);
    let (sender, receiver) = mpsc::channel();
    let begun = Instant::now();
    for index in 0..16 {
        let sender = sender.clone();
        let read = Command::Read {
            offset: index * 4096,
            length: 4096,
        };
        let done = Box::new(move |answer| sender.send(answer).unwrap());
        client.send(read, begun + LONG, done);
    }
    assert_eq!(client.in_flight(), 16);
    for _ in 0..16 {
        assert_eq!(receiver.recv().unwrap().unwrap().data.len(), 4096);
    }
    assert!(
        begun.elapsed() < Duration::from_millis(1600),
        "one after the other"
    );
}

#[test]
fn a_deadline_is_kept_and_the_late_answer_is_dropped() {
    let Some(server) = Nbdkit::start(&["--filter=delay", "memory", "1M", "rdelay=300ms"]) else {
        return;
    };
    let client = connect(&server);
    let read = Command::Read {
        offset: 0,
        length: 4096,
    };
    assert_eq!(
        client.call(read, Duration::from_millis(20)),
        Err(Failure::TimedOut)
    );
    assert_eq!(client.in_flight(), 1);
    assert_eq!(client.call(read, LONG).unwrap().data.len(), 4096);
}

#[test]
fn what_is_under_way_fails_when_the_server_dies_and_the_client_stays_broken() {
    let Some(mut server) = Nbdkit::start(&["--filter=delay", "memory", "1M", "rdelay=60"]) else {
        return;
    };
    let client = connect(&server);
    let (sender, receiver) = mpsc::channel();
    let read = Command::Read {
        offset: 0,
        length: 4096,
    };
    let done = Box::new(move |answer| sender.send(answer).unwrap());
    client.send(read, Instant::now() + LONG, done);
    server.kill();
    assert_eq!(receiver.recv().unwrap(), Err(Failure::Broken));
    assert_eq!(client.call(read, LONG), Err(Failure::Broken));
    assert!(client.is_broken());
}

#[test]
fn an_export_that_is_not_there_is_refused_in_the_servers_words() {
    let files = tempfile::TempDir::new().unwrap();
    let directory = format!("dir={}", files.path().display());
    let Some(server) = Nbdkit::start(&["file", &directory]) else {
        return;
    };
    let refused = Client::connect(
        &Endpoint::Unix(server.socket()),
        "none",
        &Options::default(),
    );
    assert!(matches!(
        refused.err(),
        Some(ConnectError::Refused(_) | ConnectError::Io(_))
    ));
    let nowhere = Endpoint::Unix("/nonexistent/socket".into());
    let refused = Client::connect(&nowhere, "", &Options::default());
    assert!(matches!(refused.err(), Some(ConnectError::Io(_))));
}

/// A server that opens any export of 1 MiB and answers the first read with these bytes; `$COOKIE` in them is its cookie.
fn liar(listener: UnixListener, answer: impl FnOnce(u64) -> Vec<u8>) {
    let (mut stream, _) = listener.accept().unwrap();
    let mut greeting = SERVER_MAGIC.to_be_bytes().to_vec();
    greeting.extend_from_slice(&OPTION_MAGIC.to_be_bytes());
    greeting.extend_from_slice(&3u16.to_be_bytes());
    stream.write_all(&greeting).unwrap();
    stream.read_exact(&mut [0; 4]).unwrap();
    loop {
        let mut head = [0; OptionRequest::SIZE];
        stream.read_exact(&mut head).unwrap();
        let asked = OptionRequest::parse(&head).unwrap();
        stream
            .read_exact(&mut vec![0; asked.length as usize])
            .unwrap();
        let say = |kind: u32, body: &[u8]| {
            let length = body.len() as u32;
            let head = OptionReply {
                option: asked.option,
                kind,
                length,
            };
            [&head.bytes()[..], body].concat()
        };
        if asked.option == option::GO {
            let size = (1u64 << 20).to_be_bytes();
            let body = [&info::EXPORT.to_be_bytes()[..], &size, &1u16.to_be_bytes()].concat();
            stream.write_all(&say(reply::INFO, &body)).unwrap();
        }
        stream.write_all(&say(reply::ACK, &[])).unwrap();
        if asked.option == option::GO {
            break;
        }
    }
    let mut head = [0; RequestHeader::SIZE];
    stream.read_exact(&mut head).unwrap();
    stream
        .write_all(&answer(RequestHeader::parse(&head).unwrap().cookie))
        .unwrap();
    let _ = stream.read(&mut [0]); // until the client goes
}

/// A read's chunk: its place within the read of 8192 bytes at 4096, and so many bytes of data.
fn piece(cookie: u64, flags: u16, offset: u64, data: usize) -> Vec<u8> {
    let length = 8 + data as u32;
    let head = Chunk {
        flags,
        kind: chunk::OFFSET_DATA,
        cookie,
        length,
    };
    [&head.bytes()[..], &offset.to_be_bytes(), &vec![7; data]].concat()
}

fn answered(answer: impl FnOnce(u64) -> Vec<u8> + Send + 'static) -> Result<Vec<u8>, Failure> {
    let directory = tempfile::TempDir::new().unwrap();
    let path = directory.path().join("nbd");
    let listener = UnixListener::bind(&path).unwrap();
    let server = std::thread::spawn(move || liar(listener, answer));
    let client = Client::connect(&Endpoint::Unix(path), "x", &Options::default()).unwrap();
    let read = Command::Read {
        offset: 4096,
        length: 8192,
    };
    let result = client.call(read, LONG).map(|answer| answer.data);
    drop(client);
    server.join().unwrap();
    result
}

#[test]
fn an_answer_is_believed_only_if_it_covers_each_byte_once() {
    let two = |c| [piece(c, 0, 8192, 4096), piece(c, 1, 4096, 4096)].concat();
    assert_eq!(answered(two), Ok(vec![7; 8192]));
    let broken = Err(Failure::Broken);
    assert_eq!(
        answered(|c| piece(c, 1, 4096, 4096)),
        broken,
        "half is missing"
    );
    let twice = |c| [piece(c, 0, 4096, 4096), piece(c, 1, 4096, 4096)].concat();
    assert_eq!(answered(twice), broken, "one half came twice");
    assert_eq!(answered(|c| piece(c, 1, 4096, 12288)), broken, "too long");
    assert_eq!(
        answered(|c| piece(c, 1, 0, 8192)),
        broken,
        "from before the read"
    );
    assert_eq!(
        answered(|c| piece(c + 1, 1, 4096, 8192)),
        broken,
        "of another command"
    );
    assert_eq!(answered(|_| vec![0; 64]), broken, "no reply at all");
    let simple = |cookie| SimpleReply { error: 0, cookie }.bytes().to_vec();
    assert_eq!(answered(simple), broken, "a simple reply to a read");
}

#[test]
fn a_server_that_does_not_answer_the_handshake_is_given_up_in_time() {
    let directory = tempfile::TempDir::new().unwrap();
    let path = directory.path().join("nbd");
    let _listener = UnixListener::bind(&path).unwrap();
    let options = Options {
        connect: Duration::from_millis(50),
        ..Options::default()
    };
    let refused = Client::connect(&Endpoint::Unix(path), "", &options);
    assert!(
        matches!(refused, Err(ConnectError::Io(error)) if error.kind() == std::io::ErrorKind::TimedOut)
    );
}
