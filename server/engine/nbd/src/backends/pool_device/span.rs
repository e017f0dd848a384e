//! A range of bytes cut into whole pages and parts of pages, and the holes found in it.

use tmem_core::CLUSTER;

use crate::backend::Reply;

/// Bytes of a request cut into whole pages and what stands out before and after them.
#[derive(Clone, Copy)]
pub struct Span {
    pub offset: u64,
    pub length: u64,
}

impl Span {
    pub fn end(self) -> u64 {
        self.offset + self.length
    }

    /// The parts of one cluster each.
    pub fn clusters(self, page: u64) -> impl Iterator<Item = Span> {
        let bytes = page * u64::from(CLUSTER);
        let mut at = self.offset;
        std::iter::from_fn(move || {
            let offset = at;
            at = ((at / bytes + 1) * bytes).min(self.end());
            (offset < at).then(|| Span {
                offset,
                length: at - offset,
            })
        })
    }

    /// Part of a page, whole pages, part of a page; each may be empty.
    pub fn parts(self, page: u64) -> [Span; 3] {
        let first = self.offset.next_multiple_of(page).min(self.end());
        let last = (self.end() / page * page).max(first);
        let span = |from: u64, to: u64| Span {
            offset: from,
            length: to - from,
        };
        [
            span(self.offset, first),
            span(first, last),
            span(last, self.end()),
        ]
    }

    pub fn range(self, of: Span) -> std::ops::Range<usize> {
        let start = (self.offset - of.offset) as usize;
        start..start + self.length as usize
    }
}

/// Runs of pages that turned out to be holes.
#[derive(Default)]
pub struct Missing {
    pub run: Option<Span>,
}

impl Missing {
    pub fn add(&mut self, missing: bool, span: Span) {
        self.run = missing.then_some(span);
    }

    pub fn next(&mut self, missing: bool, span: Span, reply: &mut Reply<'_>) {
        match &mut self.run {
            Some(run) if missing => run.length += span.length,
            None if missing => self.run = Some(span),
            _ => self.end(reply),
        }
    }

    pub fn end(&mut self, reply: &mut Reply<'_>) {
        if let Some(run) = self.run.take() {
            reply.punch(run.offset, run.length as usize);
        }
    }
}
