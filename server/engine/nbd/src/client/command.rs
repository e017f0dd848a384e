//! Commands to a server, and their results.

use crate::protocol::{Errno, RequestHeader, command, flag};

/// Why a command has no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    Errno(Errno),
    TimedOut,
    Broken,
}

/// What a command brought. Only a read brings bytes; in `holes` (offset from the read's start, and length) they are zeros.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Answer {
    pub data: Vec<u8>,
    pub holes: Vec<(u32, u32)>,
}

pub type Done = Box<dyn FnOnce(Result<Answer, Failure>) + Send>;

/// What may be asked.
#[derive(Clone, Copy, Debug)]
pub enum Command<'a> {
    Read {
        offset: u64,
        length: u32,
    },
    Write {
        offset: u64,
        data: &'a [u8],
        fua: bool,
    },
    Trim {
        offset: u64,
        length: u32,
    },
    WriteZeroes {
        offset: u64,
        length: u32,
        no_hole: bool,
    },
    Flush,
}

pub fn head(command: u16, flags: u16, cookie: u64, offset: u64, length: u32) -> RequestHeader {
    RequestHeader {
        flags,
        command,
        cookie,
        offset,
        length,
    }
}

impl Command<'_> {
    pub fn header(&self, cookie: u64) -> RequestHeader {
        let with = |condition: bool, flag: u16| if condition { flag } else { 0 };
        match *self {
            Command::Read { offset, length } => head(command::READ, 0, cookie, offset, length),
            Command::Write { offset, data, fua } => {
                let length = data.len() as u32;
                head(command::WRITE, with(fua, flag::FUA), cookie, offset, length)
            }
            Command::Trim { offset, length } => head(command::TRIM, 0, cookie, offset, length),
            Command::WriteZeroes {
                offset,
                length,
                no_hole,
            } => {
                let flags = with(no_hole, flag::NO_HOLE);
                head(command::WRITE_ZEROES, flags, cookie, offset, length)
            }
            Command::Flush => head(command::FLUSH, 0, cookie, 0, 0),
        }
    }

    pub fn payload(&self) -> &[u8] {
        match self {
            Command::Write { data, .. } => data,
            _ => &[],
        }
    }
}
