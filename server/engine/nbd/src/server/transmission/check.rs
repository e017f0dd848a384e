//! Whether a request may reach a backend, and what it is told if not.

use crate::backend::{Contexts, ExportInfo};
use crate::protocol::{Errno, MAX_DATA, RequestHeader, command, flag};

/// What a connection may request.
pub struct Checks {
    read_only: bool,
    structured: bool,
    has_contexts: bool,
    minimum_block: u32,
}

/// Whether a command changes what is stored.
pub fn is_write(command: u16) -> bool {
    matches!(
        command,
        command::WRITE | command::TRIM | command::WRITE_ZEROES
    )
}

impl Checks {
    pub fn new(info: &ExportInfo, structured: bool, contexts: Contexts) -> Checks {
        Checks {
            read_only: info.read_only,
            structured,
            has_contexts: contexts.allocation || contexts.private,
            minimum_block: info.minimum_block,
        }
    }

    pub fn check(&self, header: &RequestHeader, size: u64) -> Result<(), Errno> {
        let known = self.flags(header.command).ok_or(Errno::Invalid)?;
        if header.flags & !known != 0 {
            return Err(Errno::Invalid);
        }
        if self.read_only && is_write(header.command) {
            return Err(Errno::Perm);
        }
        if header.command == command::FLUSH {
            return Ok(());
        }
        self.check_range(header, size)
    }

    /// The flags a command may have; None for a command that is not known, or was not agreed upon.
    fn flags(&self, command: u16) -> Option<u16> {
        let own = match command {
            command::READ if self.structured => flag::DF,
            command::READ | command::WRITE | command::FLUSH => 0,
            command::TRIM | command::CACHE => 0,
            command::WRITE_ZEROES => flag::NO_HOLE | flag::FAST_ZERO,
            command::BLOCK_STATUS if self.has_contexts => flag::REQ_ONE,
            _ => return None,
        };
        // FUA is allowed everywhere and means something in writes only.
        Some(own | flag::FUA)
    }

    fn check_range(&self, header: &RequestHeader, size: u64) -> Result<(), Errno> {
        let carries_data = matches!(header.command, command::READ | command::WRITE);
        let end = header.offset.checked_add(u64::from(header.length));
        let block = u64::from(self.minimum_block);
        let aligned =
            header.offset.is_multiple_of(block) && u64::from(header.length).is_multiple_of(block);
        if header.length == 0 || !aligned || (carries_data && header.length > MAX_DATA) {
            return Err(Errno::Invalid);
        }
        if end.is_some_and(|end| end <= size) {
            return Ok(());
        }
        Err(match header.command {
            command::WRITE | command::WRITE_ZEROES => Errno::NoSpace,
            _ => Errno::Invalid,
        })
    }
}
