//! The versions of the volume's blocks, a stripe at a time.
//!
//! A stripe stands for groups of [`GROUP`] pages, many groups a stripe in a large volume. A change of any page of it moves
//! its version on before anything else is done, and keeps it *changing* until the change is over. So who remembers a
//! version while nothing is changing, and finds it unchanged later, knows that no change began in between.
//! Locking: stripes' locks are taken first, several in the order of their numbers; under them pages are handed to the cache.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Pages that lie in one stripe together, aligned.
pub const GROUP: u64 = 64;
const STRIPES: u64 = 1024;

#[derive(Default)]
pub struct Stripe {
    version: u64,
    changing: u32,
}

pub struct Stripes {
    stripes: Vec<Mutex<Stripe>>,
}

/// Stripes that are locked, by their numbers.
pub type Locked<'s> = Vec<(usize, MutexGuard<'s, Stripe>)>;

/// A version of a stripe at a moment when nothing of it was changing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Version(u64);

/// A change under way: the stripes it touches, with the versions it gave them, if no other change of them was under way.
pub struct Changing {
    stripes: Vec<(usize, Option<u64>)>,
}

impl Default for Stripes {
    fn default() -> Self {
        let stripes = (0..STRIPES).map(|_| Mutex::default()).collect();
        Stripes { stripes }
    }
}

fn of(page: u64) -> usize {
    (page / GROUP % STRIPES) as usize
}

impl Stripes {
    fn lock(&self, stripe: usize) -> MutexGuard<'_, Stripe> {
        let stripe = self.stripes[stripe].lock();
        stripe.unwrap_or_else(PoisonError::into_inner)
    }

    /// The version of a page's stripe; None while it is changing.
    pub fn look(&self, page: u64) -> Option<Version> {
        let stripe = self.lock(of(page));
        (stripe.changing == 0).then_some(Version(stripe.version))
    }

    /// The items of whose stripe no change began since their version, the others, and the stripes of all, locked. `of` says
    /// the page and the version of an item.
    pub fn unchanged<T>(
        &self,
        mut items: Vec<T>,
        of: impl Fn(&T) -> (u64, Version),
    ) -> (Vec<T>, Vec<T>, Locked<'_>) {
        items.sort_by_key(|item| self::of(of(item).0));
        let mut locked: Locked<'_> = Vec::new();
        let (same, other) = items.into_iter().partition(|item| {
            let (page, version) = of(item);
            let number = self::of(page);
            if locked.last().is_none_or(|(last, _)| *last != number) {
                locked.push((number, self.lock(number)));
            }
            locked
                .last()
                .is_some_and(|(_, stripe)| stripe.version == version.0)
        });
        (same, other, locked)
    }

    pub fn begin(&self, pages: &Range<u64>) -> Changing {
        let groups = pages.start / GROUP..pages.end.div_ceil(GROUP);
        let groups = groups.start..groups.end.min(groups.start + STRIPES);
        let touched: BTreeSet<usize> = groups.map(|group| of(group * GROUP)).collect();
        let begun = touched.into_iter().map(|number| {
            let mut stripe = self.lock(number);
            let alone = stripe.changing == 0;
            stripe.version += 1;
            stripe.changing += 1;
            (number, alone.then_some(stripe.version))
        });
        Changing {
            stripes: begun.collect(),
        }
    }

    /// The change is over.
    pub fn end(&self, changing: &Changing) {
        for &(number, _) in &changing.stripes {
            self.lock(number).changing -= 1;
        }
    }
}

impl Changing {
    /// The version that the change gave a page's stripe: while it lasts, no other change was under way since this one began.
    /// None where one was already: which of the two the SAN carried out last is not known.
    pub fn version(&self, page: u64) -> Option<Version> {
        let number = of(page);
        let found = self.stripes.iter().find(|(stripe, _)| *stripe == number);
        found.and_then(|(_, version)| version.map(Version))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_noticed_by_who_looked_before_it_and_by_who_looks_during_it() {
        let stripes = Stripes::default();
        let before = stripes.look(5).unwrap();
        let is_unchanged =
            |page, version| stripes.unchanged(vec![()], |()| (page, version)).0.len() == 1;
        assert!(is_unchanged(5, before));
        let change = stripes.begin(&(GROUP - 4..GROUP + 6));
        assert_eq!((stripes.look(5), stripes.look(2 * GROUP - 1)), (None, None));
        assert!(stripes.look(2 * GROUP).is_some());
        stripes.end(&change);
        assert!(!is_unchanged(5, before));
        assert_eq!(stripes.look(5), change.version(5));
        let (one, two) = (stripes.begin(&(0..1)), stripes.begin(&(1..2)));
        stripes.end(&one);
        assert_eq!(stripes.look(0), None, "the other change goes on");
        assert!(!is_unchanged(0, one.version(0).unwrap()));
        stripes.end(&two);
        assert!(stripes.look(0).is_some());
        assert_eq!(
            two.version(0),
            None,
            "which of the two is the last is not known"
        );
    }

    #[test]
    fn a_change_of_everything_ends_for_every_stripe() {
        let stripes = Stripes::default();
        let change = stripes.begin(&(1..1 << 40));
        assert_eq!(stripes.look(12345), None);
        stripes.end(&change);
        assert!((0..STRIPES).all(|group| stripes.look(group * GROUP).is_some()));
    }
}
