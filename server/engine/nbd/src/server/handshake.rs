//! The handshake: the client lists and negotiates until it opens an export or disconnects.
//!
//! It is bounded in time, and in memory: an option's data is at most [`MOST`] bytes. Unknown or malformed options are
//! refused and the handshake continues, as the specification demands; a wrong magic number ends it.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use super::input::{Input, handshake_tls, wait};
use super::options::{Query, parse_go, parse_query};
use super::shared::Shared;
use crate::backend::{Client, Context, Contexts, ExportInfo, Head, Link, Refusal};
use crate::exports::{HANDOVER, Opened};
use crate::protocol::{
    BASE_ALLOCATION, MAX_DATA, OPTION_MAGIC, OptionReply, OptionRequest, SERVER_MAGIC, handshake,
    info, option, reply, transmission,
};
use crate::tls::{Tls, TlsSession};
use crate::wire::SendBuffer;

/// Most bytes of an option's data.
const MOST: u32 = 64 << 10;

/// The result of the handshake.
pub struct Session {
    pub opened: Opened,
    pub info: ExportInfo,
    pub structured: bool,
    pub contexts: Contexts,
}

/// How the handshake continues after an option.
enum Next {
    Go(Box<Session>),
    On,
    End,
}

pub struct Handshake<'c> {
    shared: &'c Shared,
    link: &'c Arc<Link>,
    client: Client,
    /// Where it comes from; counts towards limits.
    origin: String,
    input: &'c mut Input,
    out: SendBuffer,
    deadline: Instant,
    /// The TLS configuration of this connection.
    tls: Option<Tls>,
    /// Why the client is refused, now that its certificate is known.
    refused: Option<String>,
    /// How TLS has kept the client out so far, in words for the operator.
    kept_out: Option<String>,
    no_zeroes: bool,
    structured: bool,
    /// The meta contexts that were chosen, and for which export.
    chosen: Option<(String, Contexts)>,
}

impl<'c> Handshake<'c> {
    pub fn new(
        shared: &'c Shared,
        link: &'c Arc<Link>,
        client: Client,
        origin: String,
        input: &'c mut Input,
    ) -> Handshake<'c> {
        Handshake {
            shared,
            link,
            client,
            origin,
            input,
            out: SendBuffer::default(),
            tls: shared.tls(),
            refused: None,
            kept_out: None,
            deadline: Instant::now() + shared.settings.handshake_timeout,
            no_zeroes: false,
            structured: false,
            chosen: None,
        }
    }

    /// Run the handshake; None if the client leaves without an export, which is reported if TLS kept it out.
    pub fn run(mut self) -> io::Result<Option<Session>> {
        let session = self.talk();
        if let (Ok(None) | Err(_), Some(why)) = (&session, &self.kept_out) {
            self.shared.kept_out.fetch_add(1, Ordering::Relaxed);
            self.shared.report(&self.client.address, why);
        }
        session
    }

    fn talk(&mut self) -> io::Result<Option<Session>> {
        self.out.push(&SERVER_MAGIC.to_be_bytes());
        self.out.push(&OPTION_MAGIC.to_be_bytes());
        let flags = handshake::FIXED_NEWSTYLE | handshake::NO_ZEROES;
        self.out.push(&flags.to_be_bytes());
        self.send()?;
        let Some(flags) = self.take(4)? else {
            return Ok(None);
        };
        let flags = u32::from_be_bytes(flags.try_into().expect("4 bytes"));
        if flags & !u32::from(handshake::FIXED_NEWSTYLE | handshake::NO_ZEROES) != 0 {
            return Ok(None);
        }
        self.no_zeroes = flags & u32::from(handshake::NO_ZEROES) != 0;
        loop {
            let next = self.option()?;
            self.send()?;
            match next {
                Next::Go(session) => return Ok(Some(*session)),
                Next::End => return Ok(None),
                Next::On => {}
            }
        }
    }

    fn send(&mut self) -> io::Result<()> {
        while !self.link.socket().send_some(&mut self.out) {
            wait(self.link.socket(), true, self.deadline)?;
        }
        self.out.clear();
        Ok(())
    }

    /// The next `count` bytes; None at the end of the stream.
    fn take(&mut self, count: usize) -> io::Result<Option<Vec<u8>>> {
        if !self.input.need(self.link.socket(), count, self.deadline)? {
            return Ok(None);
        }
        let bytes = self.input.peek(count).map(<[u8]>::to_vec);
        self.input.consume(count);
        Ok(bytes)
    }

    /// Discard bytes.
    fn skip(&mut self, mut count: usize) -> io::Result<bool> {
        while count > 0 {
            if !self.input.need(self.link.socket(), 1, self.deadline)? {
                return Ok(false);
            }
            let some = self.input.len().min(count);
            self.input.consume(some);
            count -= some;
        }
        Ok(true)
    }

    fn option(&mut self) -> io::Result<Next> {
        let Some(head) = self.take(OptionRequest::SIZE)? else {
            return Ok(Next::End);
        };
        let head = head[..].try_into().expect("a whole head");
        let Some(OptionRequest { option, length }) = OptionRequest::parse(head) else {
            return Ok(Next::End);
        };
        if length > MOST {
            if option == option::EXPORT_NAME || !self.skip(length as usize)? {
                return Ok(Next::End);
            }
            self.refuse(option, reply::ERR_TOO_BIG, "the option is too long");
            return Ok(Next::On);
        }
        let Some(data) = self.take(length as usize)? else {
            return Ok(Next::End);
        };
        if option == option::STARTTLS {
            return self.start_tls(&data);
        }
        if let Some(next) = self.refuse_plain(option) {
            return Ok(next);
        }
        Ok(self.answer(option, &data))
    }

    /// Refuse clients that must start TLS first, or that are refused altogether.
    fn refuse_plain(&mut self, option: u32) -> Option<Next> {
        let requires = self.tls.as_ref().is_some_and(|tls| tls.required);
        let (kind, why) = match self.refused.clone() {
            Some(why) => (reply::ERR_POLICY, why),
            None if requires && !self.client.tls => {
                let why = "this server requires TLS: begin with STARTTLS";
                (reply::ERR_TLS_REQD, why.to_owned())
            }
            None => return None,
        };
        if option == option::ABORT {
            return None;
        }
        if !self.client.tls {
            self.kept_out = Some("it does not start TLS".into());
        }
        match option {
            option::EXPORT_NAME => return Some(Next::End),
            _ => self.refuse(option, kind, &why),
        }
        Some(Next::On)
    }

    /// Switch to TLS. What was negotiated before is forgotten.
    fn start_tls(&mut self, data: &[u8]) -> io::Result<Next> {
        let option = option::STARTTLS;
        let Some(tls) = self.tls.clone() else {
            self.refuse(option, reply::ERR_UNSUP, "this server has no TLS");
            return Ok(Next::On);
        };
        if !data.is_empty() || self.client.tls {
            self.refuse(
                option,
                reply::ERR_INVALID,
                "STARTTLS takes no data and is sent once",
            );
            return Ok(Next::On);
        }
        self.reply(option, reply::ACK, &[]);
        self.send()?;
        let session = TlsSession::new(&self.shared.newest_tls().unwrap_or(tls))?;
        // Bytes that came too early are the client's first of TLS, and never more options in plain.
        let early = self.input.peek(self.input.len()).map(<[u8]>::to_vec);
        let early = early.unwrap_or_default();
        self.input.consume(early.len());
        let session = handshake_tls(self.link.socket(), session, early, self.deadline);
        self.kept_out = match &session {
            Ok(Some(_)) => None,
            Ok(None) => Some(
                "it disconnected during the TLS handshake, as clients do that do not trust the certificate".into(),
            ),
            Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                Some("it did not finish the TLS handshake in time".into())
            }
            Err(error) => Some(format!("TLS: {error}")),
        };
        let Some(session) = session? else {
            return Ok(Next::End);
        };
        match session.identity() {
            Ok(identity) => self.client.identity = identity,
            Err(why) => {
                self.kept_out = Some(why.clone());
                self.refused = Some(why);
            }
        }
        self.client.tls = true;
        (self.structured, self.chosen) = (false, None);
        self.link.socket().encrypt(session);
        Ok(Next::On)
    }

    fn answer(&mut self, option: u32, data: &[u8]) -> Next {
        match option {
            option::EXPORT_NAME => return self.export_name(data),
            option::ABORT => {
                self.reply(option, reply::ACK, &[]);
                return Next::End;
            }
            option::LIST if data.is_empty() => self.list(),
            option::STRUCTURED_REPLY if data.is_empty() => {
                self.structured = true;
                self.reply(option, reply::ACK, &[]);
            }
            option::LIST | option::STRUCTURED_REPLY => {
                self.refuse(option, reply::ERR_INVALID, "the option takes no data");
            }
            option::INFO | option::GO => return self.info(option, data),
            option::LIST_META_CONTEXT | option::SET_META_CONTEXT => self.contexts(option, data),
            _ => self.refuse(option, reply::ERR_UNSUP, "the option is not supported"),
        }
        Next::On
    }

    fn reply(&mut self, option: u32, kind: u32, parts: &[&[u8]]) {
        let length = parts.iter().map(|part| part.len() as u32).sum();
        let head = OptionReply {
            option,
            kind,
            length,
        };
        self.out.push(&head.bytes());
        parts.iter().for_each(|part| {
            self.out.push(part);
        });
    }

    fn refuse(&mut self, option: u32, kind: u32, why: &str) {
        self.reply(option, kind, &[why.as_bytes()]);
    }

    fn refuse_export(&mut self, option: u32, refusal: &Refusal) {
        let kind = match refusal {
            Refusal::Unknown(_) => reply::ERR_UNKNOWN,
            Refusal::Policy(_) => reply::ERR_POLICY,
            Refusal::Invalid(_) => reply::ERR_INVALID,
            Refusal::Shutdown(_) => reply::ERR_SHUTDOWN,
        };
        let mut why = refusal.to_string();
        if matches!(refusal, Refusal::Unknown(_)) {
            // Whoever may not open an export learns no more than of one that is not there.
            let who = self.client.name();
            why = format!("{why}, or client {who:?} may not open it");
        }
        self.refuse(option, kind, &why);
    }

    fn list(&mut self) {
        for name in self.shared.exports.names(&self.client) {
            let length = (name.len() as u32).to_be_bytes();
            self.reply(option::LIST, reply::SERVER, &[&length, name.as_bytes()]);
        }
        self.reply(option::LIST, reply::ACK, &[]);
    }

    /// The old way to open an export. Its only error is to disconnect.
    fn export_name(&mut self, data: &[u8]) -> Next {
        let Ok(name) = std::str::from_utf8(data) else {
            return Next::End;
        };
        let Ok(session) = self.open(name, false) else {
            return Next::End;
        };
        let size = session.opened.backend.size();
        self.out.push(&size.to_be_bytes());
        self.out.push(&self.flags(&session.info).to_be_bytes());
        if !self.no_zeroes {
            self.out.push(&[0; 124]);
        }
        Next::Go(Box::new(session))
    }

    /// Open an export for good.
    fn open(&mut self, name: &str, knows_blocks: bool) -> Result<Session, Refusal> {
        let (name, backend) = self.shared.exports.probe(name, &self.client)?;
        let info = backend.info();
        drop(backend);
        let chosen = self.chosen.take_if(|(export, _)| *export == name);
        let contexts = chosen.map(|(_, contexts)| contexts).unwrap_or_default();
        if info.context_required && !(self.structured && contexts.private) {
            return Err(Refusal::Policy(format!(
                "export {name:?} requires structured replies and the meta context {:?}",
                info.private_context.unwrap_or_default()
            )));
        }
        if info.minimum_block > 1 && !knows_blocks {
            return Err(Refusal::Policy(format!(
                "export {name:?} requires clients to ask for block sizes"
            )));
        }
        let opened = self.open_within_limits(&name)?;
        Ok(Session {
            info: opened.backend.info(),
            opened,
            structured: self.structured,
            contexts,
        })
    }

    /// Open an export within the server's limits.
    fn open_within_limits(&mut self, name: &str) -> Result<Opened, Refusal> {
        let (connections, exports) = (&self.shared.connections, &self.shared.exports);
        let who = self.client.identity.as_deref();
        let who = who.map_or_else(|| self.origin.clone(), |name| format!("{name:?}"));
        let claim = || exports.claim(name);
        if let Err(full) = connections.admit(self.client.id, &who, &claim, HANDOVER) {
            let why = connections.explain(full);
            self.shared.report(&self.client.address, &why);
            return Err(Refusal::Policy(why));
        }
        let opened = exports.open(name, &self.client, self.link);
        if opened.is_err() {
            connections.step_back(self.client.id);
        }
        opened
    }

    fn info(&mut self, option: u32, data: &[u8]) -> Next {
        let Some((name, wanted)) = parse_go(data) else {
            self.refuse(option, reply::ERR_INVALID, "the option's lengths are wrong");
            return Next::On;
        };
        let knows_blocks = wanted.contains(&info::BLOCK_SIZE);
        let probed = self.shared.exports.probe(name, &self.client);
        let (full_name, backend) = match probed {
            Ok(found) => found,
            Err(refusal) => {
                self.refuse_export(option, &refusal);
                return Next::On;
            }
        };
        if backend.info().minimum_block > 1 && !knows_blocks {
            self.block_sizes(option, &backend.info());
            self.refuse(option, reply::ERR_BLOCK_SIZE_REQD, "ask for block sizes");
            return Next::On;
        }
        if option == option::INFO {
            self.describe(option, &full_name, &wanted, &backend.info(), backend.size());
            return Next::On;
        }
        drop(backend);
        match self.open(&full_name, knows_blocks) {
            Ok(session) => {
                let size = session.opened.backend.size();
                self.describe(option, &full_name, &wanted, &session.info, size);
                Next::Go(Box::new(session))
            }
            Err(refusal) => {
                self.refuse_export(option, &refusal);
                Next::On
            }
        }
    }

    fn describe(&mut self, option: u32, name: &str, wanted: &[u16], is: &ExportInfo, size: u64) {
        let flags = self.flags(is).to_be_bytes();
        let kind = info::EXPORT.to_be_bytes();
        self.reply(option, reply::INFO, &[&kind, &size.to_be_bytes(), &flags]);
        if wanted.contains(&info::NAME) {
            let kind = info::NAME.to_be_bytes();
            self.reply(option, reply::INFO, &[&kind, name.as_bytes()]);
        }
        if wanted.contains(&info::DESCRIPTION) && !is.description.is_empty() {
            let kind = info::DESCRIPTION.to_be_bytes();
            self.reply(option, reply::INFO, &[&kind, is.description.as_bytes()]);
        }
        self.block_sizes(option, is);
        self.reply(option, reply::ACK, &[]);
    }

    fn block_sizes(&mut self, option: u32, is: &ExportInfo) {
        let kind = info::BLOCK_SIZE.to_be_bytes();
        let (least, liked) = (is.minimum_block, is.preferred_block);
        let sizes = [least, liked, MAX_DATA].map(u32::to_be_bytes);
        self.reply(
            option,
            reply::INFO,
            &[&kind, &sizes[0], &sizes[1], &sizes[2]],
        );
    }

    fn flags(&self, is: &ExportInfo) -> u16 {
        use transmission::*;
        let mut flags = HAS_FLAGS | SEND_FLUSH | SEND_CACHE;
        flags |= if is.read_only {
            READ_ONLY
        } else {
            SEND_FUA | SEND_TRIM | SEND_WRITE_ZEROES | SEND_FAST_ZERO
        };
        if self.structured {
            flags |= SEND_DF;
        }
        if is.multi_conn {
            flags |= CAN_MULTI_CONN;
        }
        flags
    }

    /// List meta contexts, or choose them.
    fn contexts(&mut self, option: u32, data: &[u8]) {
        let choose = option == option::SET_META_CONTEXT;
        if choose {
            self.chosen = None;
        }
        let Some(Query { name, queries }) = parse_query(data) else {
            return self.refuse(option, reply::ERR_INVALID, "the option's lengths are wrong");
        };
        if !self.structured {
            return self.refuse(
                option,
                reply::ERR_INVALID,
                "structured replies must be negotiated first",
            );
        }
        let probed = self.shared.exports.probe(name, &self.client);
        let (name, private) = match probed {
            Ok((name, backend)) => (name, backend.info().private_context),
            Err(refusal) => return self.refuse_export(option, &refusal),
        };
        let asks = |context: &str| {
            let whole = queries.contains(&context);
            let space = context.split_once(':').map_or(context, |(space, _)| space);
            let listed = |query: &&str| query.strip_suffix(':') == Some(space);
            whole || (!choose && (queries.is_empty() || queries.iter().any(listed)))
        };
        let private = private.filter(|context| asks(context));
        let contexts = Contexts {
            allocation: asks(BASE_ALLOCATION),
            private: private.is_some(),
        };
        for context in contexts.iter() {
            let id = if choose { Head::context_id(context) } else { 0 };
            let context = match context {
                Context::Allocation => BASE_ALLOCATION,
                Context::Private => private.as_deref().unwrap_or_default(),
            };
            let parts = [&id.to_be_bytes(), context.as_bytes()];
            self.reply(option, reply::META_CONTEXT, &parts);
        }
        self.reply(option, reply::ACK, &[]);
        if choose {
            self.chosen = Some((name, contexts));
        }
    }
}
