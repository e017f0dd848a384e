//! The client's half of the handshake: fixed newstyle, structured replies, meta contexts, GO.
//!
//! With TLS nothing is said before it has begun, and it begins or there is no connection.
//! What a server says is bounded before it is kept: no reply to an option may be longer than [`LONGEST`].

use std::io::{self, Read, Write};
use std::sync::Arc;

use rustls::ClientConfig;
use rustls::pki_types::ServerName;

use super::channel::Channel;
use super::endpoint::Endpoint;
use crate::protocol::{
    MAX_STRING, OPTION_MAGIC, OptionReply, OptionRequest, SERVER_MAGIC, handshake, info, option,
    reply, transmission,
};
use crate::tls::{ClientTls, TlsSession, explain};

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The server's words.
    #[error("{0}")]
    Refused(String),
    #[error("{0}")]
    Protocol(String),
    /// Why the two do not trust one another.
    #[error("{0}")]
    Tls(String),
}

/// What the server said of the export.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Opened {
    pub size: u64,
    /// As in [`transmission`].
    pub flags: u16,
    /// Block sizes; 0 where the server names none.
    pub minimum: u32,
    pub preferred: u32,
    pub maximum: u32,
    pub description: String,
    pub structured: bool,
    /// The meta contexts that the export has, by number.
    pub contexts: Vec<(u32, String)>,
}

impl Opened {
    pub fn can(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }
}

/// Longest reply to an option that is read, in bytes.
const LONGEST: u32 = 64 << 10;
/// Most replies to one option.
const MOST_REPLIES: usize = 1000;

/// What TLS is begun with.
pub struct Secure {
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
}

impl Secure {
    pub fn new(tls: &ClientTls, endpoint: &Endpoint) -> Result<Secure, ConnectError> {
        let Endpoint::Tcp { host, .. } = endpoint else {
            let why = format!("{endpoint} is a Unix socket, and TLS is for TCP");
            return Err(ConnectError::Tls(why));
        };
        let name = ServerName::try_from(host.clone())
            .map_err(|_| ConnectError::Tls(format!("TLS cannot verify the host name {host:?}")))?;
        let config = tls.load().map_err(ConnectError::Tls)?;
        Ok(Secure { config, name })
    }
}

/// Negotiate one export with these meta contexts. The export may not have them all: see [`Opened::contexts`].
pub fn negotiate(
    stream: &Channel,
    secure: Option<Secure>,
    export: &str,
    contexts: &[String],
) -> Result<Opened, ConnectError> {
    let result = talk(stream, secure, export, contexts);
    result.map_err(|error| match error {
        ConnectError::Io(e) => explain(&e).map_or(ConnectError::Io(e), ConnectError::Tls),
        other => other,
    })
}

fn talk(
    stream: &Channel,
    secure: Option<Secure>,
    export: &str,
    contexts: &[String],
) -> Result<Opened, ConnectError> {
    if export.len() > MAX_STRING {
        return Err(ConnectError::Refused(
            "the export's name is too long".into(),
        ));
    }
    let mut talk = Talk { stream };
    talk.greet()?;
    if let Some(secure) = secure {
        let begun = talk.asked(option::STARTTLS, &[])?;
        begun.map_err(|(_, why)| ConnectError::Tls(format!("there is no TLS: {why}")))?;
        stream.encrypt(TlsSession::client(secure.config, secure.name)?)?;
    }
    let mut opened = Opened {
        structured: talk.asked(option::STRUCTURED_REPLY, &[])?.is_ok(),
        ..Opened::default()
    };
    if opened.structured && !contexts.is_empty() {
        opened.contexts = talk.contexts(export, contexts)?;
    }
    talk.go(export, &mut opened)?;
    Ok(opened)
}

struct Talk<'s> {
    stream: &'s Channel,
}

/// The replies to an option, or its error and what that says.
type Replies = Result<Vec<(u32, Vec<u8>)>, (u32, String)>;

impl Talk<'_> {
    fn take<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.stream.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn greet(&mut self) -> Result<(), ConnectError> {
        let magics: [u8; 16] = self.take()?;
        if magics[..8] != SERVER_MAGIC.to_be_bytes() || magics[8..] != OPTION_MAGIC.to_be_bytes() {
            return Err(protocol("the server does not speak newstyle NBD"));
        }
        let flags = u16::from_be_bytes(self.take()?);
        if flags & handshake::FIXED_NEWSTYLE == 0 {
            return Err(protocol(
                "the server does not support the fixed newstyle handshake",
            ));
        }
        let flags = flags & (handshake::FIXED_NEWSTYLE | handshake::NO_ZEROES);
        self.stream.write_all(&u32::from(flags).to_be_bytes())?;
        Ok(())
    }

    /// Send an option and read its replies up to the last.
    fn asked(&mut self, option: u32, data: &[u8]) -> Result<Replies, ConnectError> {
        let length = data.len() as u32;
        let mut message = OptionRequest { option, length }.bytes().to_vec();
        message.extend_from_slice(data);
        self.stream.write_all(&message)?;
        let mut replies = Vec::new();
        while replies.len() < MOST_REPLIES {
            let head = OptionReply::parse(&self.take()?)
                .filter(|head| head.option == option && head.length <= LONGEST)
                .ok_or_else(|| protocol("the server's reply to an option is malformed"))?;
            let mut body = vec![0; head.length as usize];
            self.stream.read_exact(&mut body)?;
            match head.kind {
                reply::ACK => return Ok(Ok(replies)),
                kind if kind & reply::ERROR != 0 => return Ok(Err((kind, refusal(kind, &body)))),
                kind => replies.push((kind, body)),
            }
        }
        Err(protocol("the server sends too many replies to an option"))
    }

    fn contexts(
        &mut self,
        export: &str,
        contexts: &[String],
    ) -> Result<Vec<(u32, String)>, ConnectError> {
        let mut data = sized(export);
        data.extend_from_slice(&(contexts.len() as u32).to_be_bytes());
        contexts
            .iter()
            .for_each(|name| data.extend_from_slice(&sized(name)));
        let Ok(replies) = self.asked(option::SET_META_CONTEXT, &data)? else {
            return Ok(Vec::new()); // GO will say what is wrong, if something is
        };
        let chosen = replies.into_iter().filter_map(|(kind, body)| {
            let (id, name) = body.split_at_checked(4)?;
            let id = u32::from_be_bytes(id.try_into().ok()?);
            let name = String::from_utf8(name.to_vec()).ok()?;
            (kind == reply::META_CONTEXT).then_some((id, name))
        });
        Ok(chosen.collect())
    }

    fn go(&mut self, export: &str, opened: &mut Opened) -> Result<(), ConnectError> {
        let mut data = sized(export);
        data.extend_from_slice(&2u16.to_be_bytes());
        data.extend_from_slice(&info::BLOCK_SIZE.to_be_bytes());
        data.extend_from_slice(&info::DESCRIPTION.to_be_bytes());
        let replies = self
            .asked(option::GO, &data)?
            .map_err(|(kind, why)| match kind {
                reply::ERR_TLS_REQD => ConnectError::Tls(why),
                _ => ConnectError::Refused(why),
            })?;
        for (_, body) in replies.iter().filter(|(kind, _)| *kind == reply::INFO) {
            learn(body, opened);
        }
        if opened.flags & transmission::HAS_FLAGS == 0 {
            return Err(protocol(
                "the server opened the export without stating its size",
            ));
        }
        Ok(())
    }
}

/// What one piece of information says.
fn learn(body: &[u8], opened: &mut Opened) {
    let number = |at: usize| u32::from_be_bytes(body[at..at + 4].try_into().expect("4 bytes"));
    let Some(kind) = body.first_chunk::<2>().map(|two| u16::from_be_bytes(*two)) else {
        return;
    };
    match (kind, body.len()) {
        (info::EXPORT, 12) => {
            opened.size = u64::from(number(2)) << 32 | u64::from(number(6));
            opened.flags = u16::from_be_bytes([body[10], body[11]]);
        }
        (info::BLOCK_SIZE, 14) => {
            (opened.minimum, opened.preferred, opened.maximum) = (number(2), number(6), number(10));
        }
        (info::DESCRIPTION, _) => {
            opened.description = String::from_utf8_lossy(&body[2..]).into_owned();
        }
        _ => {}
    }
}

/// A string after its length.
fn sized(text: &str) -> Vec<u8> {
    let mut data = (text.len() as u32).to_be_bytes().to_vec();
    data.extend_from_slice(text.as_bytes());
    data
}

fn protocol(why: &str) -> ConnectError {
    ConnectError::Protocol(why.into())
}

fn refusal(kind: u32, body: &[u8]) -> String {
    let said = String::from_utf8_lossy(body);
    let meant = match kind {
        reply::ERR_UNSUP => "the server does not know the option",
        reply::ERR_POLICY => "the server does not allow it",
        reply::ERR_INVALID => "the server found the request invalid",
        reply::ERR_TLS_REQD => "the server demands TLS",
        reply::ERR_UNKNOWN => "the server has no such export",
        reply::ERR_SHUTDOWN => "the server is shutting down",
        reply::ERR_BLOCK_SIZE_REQD => "the server requires clients to ask for block sizes",
        _ => "the server refuses",
    };
    match said.trim() {
        "" => meant.into(),
        said => format!("{meant}: {said}"),
    }
}
