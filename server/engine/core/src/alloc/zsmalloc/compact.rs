//! Compaction: the emptiest zspages' objects move into the fullest, until a class has one zspage with room at most.
//!
//! That last one is packed too: its objects move to its start, and the frames beyond them are given back.
//! Each step moves the objects of one zspage, so the shard lock is held for a bounded time.

use super::{CLASSES, GROUPS, NO_OBJECT, Zsmalloc, Zspage};
use crate::alloc::heap::{Allocator, Owner};
use crate::arena::W32;
use crate::outcome::Counter;
use crate::types::FRAME;

/// How many zspages of a list are looked at for the emptiest.
const LOOK: u32 = 32;

impl<'a> Zsmalloc<'a> {
    /// One step; false when there was nothing to gain.
    pub(super) fn compact_some(&self, owner: &dyn Owner) -> bool {
        (0..CLASSES.classes.len() as u32).any(|class| self.compact_class(class, owner))
    }

    fn compact_class(&self, class: u32, owner: &dyn Owner) -> bool {
        let Some(source) = self.emptiest(class) else {
            return false;
        };
        if self.is_only_one(&source) {
            self.pack(&source, owner)
        } else {
            self.empty(&source, owner)
        }
    }

    /// Of the emptiest group's first zspages, the emptiest.
    fn emptiest(&self, class: u32) -> Option<Zspage<'a>> {
        let lists = &self.heap.class(class)[..GROUPS as usize];
        let first = lists.iter().map(W32::get).find(|&first| first != 0)?;
        let mut least = self.zspage_at(first - 1);
        let mut next = least.entry[3].get();
        for _ in 0..LOOK {
            if next == 0 {
                break;
            }
            let other = self.zspage_at(next - 1);
            next = other.entry[3].get();
            if other.in_use() < least.in_use() {
                least = other;
            }
        }
        Some(least)
    }

    /// Whether no other zspage of the class has room.
    fn is_only_one(&self, source: &Zspage<'a>) -> bool {
        self.heap.class(source.id)[..GROUPS as usize]
            .iter()
            .filter(|list| list.get() != 0)
            .count()
            == 1
            && source.entry[3].get() == 0
            && source.entry[4].get() == 0
    }

    /// Move objects to the others with room, all of them if they fit, and then free the zspage; false where none moved.
    fn empty(&self, source: &Zspage<'a>, owner: &dyn Owner) -> bool {
        self.unlink(source);
        source.set_group(GROUPS);
        let freed = self.heap.frames.committed(source.run);
        let had = source.in_use();
        let mut left = had;
        for (zhandle, slot) in self.slots(source.run).filter(|(_, slot)| slot.is_valid()) {
            if !self.move_object(source, zhandle, &slot, owner) {
                continue; // the quota or the limit forbids the frames it needs
            }
            left -= 1;
            let object = self.object_of(source, zhandle);
            self.link_word(source, object).set(source.first_free());
            source.set_use(left, object);
            self.heap.class(source.id)[super::OBJECTS].sub(1);
            self.heap.count(Counter::MovedPages).add(1);
        }
        if left == 0 {
            self.drop_zspage(source);
            self.heap.count(Counter::Compactions).add(1);
            self.heap
                .count(Counter::CompactedFrames)
                .add(u64::from(freed));
        } else {
            self.link(source, source.group_for(left));
        }
        left < had
    }

    /// Bring the objects of the class's only zspage with room to its start; false where that frees no frame.
    fn pack(&self, zspage: &Zspage<'a>, owner: &dyn Owner) -> bool {
        let needed = (zspage.in_use() * zspage.class.size).div_ceil(FRAME as u32);
        let committed = self.heap.frames.committed(zspage.run);
        if needed >= committed || self.heap.frames.is_short(committed - needed) {
            return false;
        }
        let valid = |object: &u32| self.map(self.place(zspage, *object)).is_valid();
        let kept = zspage.in_use();
        // Looked for as they are filled and emptied: what was passed over already does not change back.
        let holes = (0..kept).filter(|o| !valid(o));
        let strays = (kept..zspage.fresh()).filter(|o| valid(o));
        for (stray, hole) in strays.zip(holes) {
            let (from, to) = (self.place(zspage, stray), self.place(zspage, hole));
            let slot = self.heap.frames.slot(from);
            self.copy_object(zspage.class, from, to, &slot);
            owner.moved(&slot, to);
            slot.invalidate();
            self.heap.count(Counter::MovedPages).add(1);
        }
        zspage.set_use(kept, NO_OBJECT);
        zspage.set_fresh(kept);
        self.heap.decommit(zspage.run, needed);
        self.heap.count(Counter::Compactions).add(1);
        self.heap
            .count(Counter::CompactedFrames)
            .add(u64::from(committed - needed));
        true
    }
}
