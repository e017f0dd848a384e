//! Why a change failed, and the error that the client gets.

use tmem_core::{Error, Outcome, Reason};

use crate::protocol::Errno;

/// The error that a client gets for a store's error.
pub fn errno(error: Error) -> Errno {
    match error {
        Error::Busy { .. } => Errno::Again,
        _ => Errno::Io,
    }
}

/// Why blocks were not changed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The store is full.
    NoMemory,
    /// The pool is frozen: the request waits until it is thawed.
    Frozen,
    Errno(Errno),
}

impl From<Errno> for Fault {
    fn from(errno: Errno) -> Fault {
        Fault::Errno(errno)
    }
}

impl From<Fault> for Errno {
    fn from(fault: Fault) -> Errno {
        match fault {
            Fault::NoMemory => Errno::NoSpace,
            Fault::Frozen => Errno::Again,
            Fault::Errno(errno) => errno,
        }
    }
}

pub fn all_stored(outcomes: &[Outcome]) -> Result<(), Fault> {
    let fault = |outcome: &Outcome| match outcome {
        Outcome::Stored { .. } => None,
        Outcome::Refused { reason, .. } => Some(match reason {
            Reason::Memory | Reason::NoSpace => Fault::NoMemory,
            Reason::Frozen => Fault::Frozen,
            _ => Errno::NoSpace.into(),
        }),
    };
    outcomes.iter().find_map(fault).map_or(Ok(()), Err)
}
