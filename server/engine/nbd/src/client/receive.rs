//! Reading what the server sends: replies simple and structured, to commands in any order.
//!
//! A length or an offset is held against what was asked before anything is kept; what makes no sense ends the connection.

use std::io::{self, BufReader, Read};

use super::Wire;
use super::channel::Channel;
use super::command::Failure;
use super::in_flight::Gathered;
use crate::protocol::{Chunk, Errno, SimpleReply, chunk};

/// Longest text of an error, in bytes.
const LONGEST_TEXT: u32 = 64 << 10;
/// Most chunks of one read: each covers a sector at least.
const MOST_CHUNKS: usize = 1 << 16;

type Reader<'s> = BufReader<&'s Channel>;

fn malformed() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "the reply is malformed")
}

impl Wire {
    /// Answer commands until the connection is over.
    pub fn receive(&self) {
        let mut reader = BufReader::with_capacity(64 << 10, &self.stream);
        while self.reply(&mut reader).is_ok() {}
        self.give_up();
        let hook = {
            let mut end = self.end();
            end.over = true;
            end.hook.take()
        };
        if let Some(hook) = hook {
            hook();
        }
    }

    fn reply(&self, reader: &mut Reader<'_>) -> io::Result<()> {
        let mut head = [0; Chunk::SIZE];
        reader.read_exact(&mut head[..SimpleReply::SIZE])?;
        let simple = head[..SimpleReply::SIZE].try_into().expect("16 bytes");
        if let Some(reply) = SimpleReply::parse(simple) {
            return self.simple(reader, reply);
        }
        reader.read_exact(&mut head[SimpleReply::SIZE..])?;
        match Chunk::parse(&head).filter(|_| self.structured) {
            Some(chunk) => self.chunk(reader, chunk),
            None => Err(malformed()),
        }
    }

    fn simple(&self, reader: &mut Reader<'_>, reply: SimpleReply) -> io::Result<()> {
        let mut gathered = self.in_flight.take(reply.cookie).ok_or_else(malformed)?;
        gathered.failure = Errno::from_number(reply.error).map(Failure::Errno);
        if gathered.failure.is_none() && gathered.length > 0 {
            if self.structured {
                return Err(malformed()); // a read that went well must then have a structured reply
            }
            let length = gathered.length;
            data(reader, &mut gathered, 0, length)?;
        }
        self.in_flight.finish(reply.cookie, gathered);
        Ok(())
    }

    fn chunk(&self, reader: &mut Reader<'_>, head: Chunk) -> io::Result<()> {
        let mut gathered = self.in_flight.take(head.cookie).ok_or_else(malformed)?;
        fill(reader, &mut gathered, head)?;
        if head.flags & chunk::DONE == 0 {
            self.in_flight.put_back(head.cookie, gathered);
        } else if gathered.complete() {
            self.in_flight.finish(head.cookie, gathered);
        } else {
            return Err(malformed());
        }
        Ok(())
    }
}

fn fill(reader: &mut Reader<'_>, gathered: &mut Gathered, head: Chunk) -> io::Result<()> {
    match head.kind {
        chunk::NONE if head.length == 0 => Ok(()),
        chunk::OFFSET_DATA if head.length > 8 => {
            let (at, length) = (offset(reader, gathered)?, head.length - 8);
            data(reader, gathered, at, length)
        }
        chunk::OFFSET_HOLE if head.length == 12 => {
            let at = offset(reader, gathered)?;
            let length = number(reader)?;
            cover(gathered, at, length)?;
            gathered.answer.holes.push((at, length));
            Ok(())
        }
        kind if kind & chunk::ERROR_BIT != 0 && (6..LONGEST_TEXT).contains(&head.length) => {
            let errno = Errno::from_number(number(reader)?).unwrap_or(Errno::Invalid);
            gathered.failure = Some(Failure::Errno(errno));
            let rest = u64::from(head.length - 4);
            match io::copy(&mut reader.take(rest), &mut io::sink())? {
                copied if copied == rest => Ok(()),
                _ => Err(malformed()),
            }
        }
        _ => Err(malformed()),
    }
}

fn number(reader: &mut Reader<'_>) -> io::Result<u32> {
    let mut bytes = [0; 4];
    reader.read_exact(&mut bytes)?;
    Ok(u32::from_be_bytes(bytes))
}

/// Where a chunk lies within its read.
fn offset(reader: &mut Reader<'_>, gathered: &Gathered) -> io::Result<u32> {
    let mut bytes = [0; 8];
    reader.read_exact(&mut bytes)?;
    let at = u64::from_be_bytes(bytes).checked_sub(gathered.offset);
    at.filter(|at| *at < u64::from(gathered.length))
        .map(|at| at as u32)
        .ok_or_else(malformed)
}

fn cover(gathered: &mut Gathered, at: u32, length: u32) -> io::Result<()> {
    let fits = length > 0 && u64::from(at) + u64::from(length) <= u64::from(gathered.length);
    if !fits || gathered.covered.len() == MOST_CHUNKS {
        return Err(malformed());
    }
    if gathered.answer.data.is_empty() {
        gathered.answer.data = vec![0; gathered.length as usize];
    }
    gathered.covered.push((at, length));
    Ok(())
}

fn data(reader: &mut Reader<'_>, gathered: &mut Gathered, at: u32, length: u32) -> io::Result<()> {
    cover(gathered, at, length)?;
    let range = at as usize..(at + length) as usize;
    reader.read_exact(&mut gathered.answer.data[range])
}
