//! The errors that NBD can carry.

use std::io;

/// An error of a command, as its reply names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Errno {
    Perm,
    Io,
    NoMemory,
    Invalid,
    NoSpace,
    Overflow,
    NotSupported,
    Shutdown,
    /// No answer, and never sent: the request cannot be carried out now, and is to be tried again. Nothing is kept meanwhile.
    Again,
}

impl Errno {
    const ALL: [(Errno, u32); 8] = [
        (Errno::Perm, 1),
        (Errno::Io, 5),
        (Errno::NoMemory, 12),
        (Errno::Invalid, 22),
        (Errno::NoSpace, 28),
        (Errno::Overflow, 75),
        (Errno::NotSupported, 95),
        (Errno::Shutdown, 108),
    ];

    /// The number on the wire, which is Linux's.
    pub fn number(self) -> u32 {
        let own = Self::ALL.iter().find(|(errno, _)| *errno == self);
        own.map_or(22, |(_, number)| *number)
    }

    /// None for success. A number that NBD does not know is to be taken for EINVAL.
    pub fn from_number(number: u32) -> Option<Errno> {
        let known = Self::ALL.iter().find(|(_, n)| *n == number);
        (number != 0).then(|| known.map_or(Errno::Invalid, |(errno, _)| *errno))
    }
}

/// Ends a connection without a word to its client, who broke the rules or is gone.
pub(crate) fn disconnect() -> io::Error {
    io::ErrorKind::InvalidData.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_error_survives_the_wire() {
        for (errno, number) in Errno::ALL {
            assert_eq!(errno.number(), number);
            assert_eq!(Errno::from_number(number), Some(errno));
        }
        assert_eq!(Errno::from_number(0), None);
        assert_eq!(Errno::from_number(9999), Some(Errno::Invalid));
    }
}
