//! The data of options. Lengths inside must agree with the length of the whole; names are UTF-8 of bounded length.

use crate::protocol::MAX_STRING;

/// Bytes not yet read of an option's data.
struct Rest<'d>(&'d [u8]);

impl<'d> Rest<'d> {
    fn take(&mut self, count: usize) -> Option<&'d [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn u16(&mut self) -> Option<u16> {
        Some(u16::from_be_bytes(self.take(2)?.try_into().ok()?))
    }

    fn u32(&mut self) -> Option<u32> {
        Some(u32::from_be_bytes(self.take(4)?.try_into().ok()?))
    }

    /// A string after its length.
    fn string(&mut self) -> Option<&'d str> {
        let length = self.u32()? as usize;
        if length > MAX_STRING {
            return None;
        }
        std::str::from_utf8(self.take(length)?).ok()
    }

    /// `value`, if nothing is left over.
    fn end<T>(self, value: T) -> Option<T> {
        self.0.is_empty().then_some(value)
    }
}

/// Of INFO and GO: the export's name, and the kinds of information asked for.
pub fn parse_go(data: &[u8]) -> Option<(&str, Vec<u16>)> {
    let mut rest = Rest(data);
    let name = rest.string()?;
    let count = rest.u16()?;
    let wanted: Option<Vec<u16>> = (0..count).map(|_| rest.u16()).collect();
    rest.end((name, wanted?))
}

/// Of the options about meta contexts.
#[derive(Debug, PartialEq, Eq)]
pub struct Query<'d> {
    pub name: &'d str,
    pub queries: Vec<&'d str>,
}

pub fn parse_query(data: &[u8]) -> Option<Query<'_>> {
    let mut rest = Rest(data);
    let name = rest.string()?;
    let count = rest.u32()?;
    // Each takes four bytes at least, so a count that lies soon finds no more.
    let queries: Option<Vec<&str>> = (0..count).map(|_| rest.string()).collect();
    rest.end(Query {
        name,
        queries: queries?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_other_length_is_refused() {
        let go = b"\0\0\0\x02ab\0\x02\0\x01\0\x03";
        assert_eq!(parse_go(go), Some(("ab", vec![1, 3])));
        let query = b"\0\0\0\x01x\0\0\0\x02\0\0\0\x01y\0\0\0\0";
        let parsed = parse_query(query).unwrap();
        assert_eq!((parsed.name, &parsed.queries[..]), ("x", &["y", ""][..]));
        for cut in 0..go.len() {
            assert_eq!(parse_go(&go[..cut]), None);
        }
        for cut in 0..query.len() {
            assert_eq!(parse_query(&query[..cut]), None);
        }
        assert_eq!(parse_go(&[&go[..], b"\0"].concat()), None);
        assert_eq!(parse_query(&[&query[..], b"\0"].concat()), None);
    }

    #[test]
    fn lengths_and_counts_that_lie_are_refused() {
        assert_eq!(parse_go(b"\xff\xff\xff\xffab\0\0"), None);
        assert_eq!(parse_query(b"\0\0\0\0\xff\xff\xff\xff"), None);
        assert_eq!(parse_go(b"\0\0\0\x02\xff\xfe\0\0"), None, "not UTF-8");
    }
}
