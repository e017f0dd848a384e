//! zsmalloc: zpages of all sizes packed in zspages of one size class, fullest first, with compaction.
//!
//! An object lies anywhere in its zspage, which is one run of frames, so it may span several. Zspages with room are listed
//! by fullness group; an object goes to the fullest. Frames of a zspage are committed as its objects reach them, and
//! beyond a few zspages of a class all at once. Density stays high as pages come and go because compaction empties
//! the emptiest zspages into the fullest.
//!
//! ```text
//! entry:  | tag | in use, free object | committed, group, fresh | next | prev | . | . | . |
//! object: | slot header | payload |         a free object's first word is the next free one's number
//! ```
//! Locking: runs under the shard lock; takes none of its own.

mod classes;
mod compact;

pub use classes::{CLASSES, Class};

use crate::alloc::frames::{Run, RunKind};
use crate::alloc::heap::{Allocator, Heap, Owner};
use crate::alloc::slot::{HEADER, HEADER_WORDS, Slot, Zhandle};
use crate::arena::{Full, W32};
use crate::types::FRAME;

/// Fullness groups of zspages with room; a full zspage is in none.
pub const GROUPS: u32 = 4;
const NO_OBJECT: u32 = 0xffff;
/// Class-table words after the groups' list heads.
const ZSPAGES: usize = GROUPS as usize;
const OBJECTS: usize = GROUPS as usize + 1;

/// The allocator, over one pool's heap.
#[derive(Clone, Copy)]
pub struct Zsmalloc<'a> {
    heap: Heap<'a>,
}

/// A zspage: its run, its frame-table entry, its class.
#[derive(Clone, Copy)]
struct Zspage<'a> {
    run: Run,
    entry: &'a [W32],
    id: u32,
    class: Class,
}

impl<'a> Zspage<'a> {
    fn in_use(&self) -> u32 {
        self.entry[1].get() & 0xffff
    }

    fn first_free(&self) -> u32 {
        self.entry[1].get() >> 16
    }

    fn set_use(&self, in_use: u32, first_free: u32) {
        self.entry[1].set(in_use | first_free << 16);
    }

    fn group(&self) -> u32 {
        self.entry[2].get() >> 8 & 0xff
    }

    fn set_group(&self, group: u32) {
        self.entry[2].set(self.entry[2].get() & !0xff00 | group << 8);
    }

    /// Objects ever handed out; those beyond were never written.
    fn fresh(&self) -> u32 {
        self.entry[2].get() >> 16
    }

    fn set_fresh(&self, fresh: u32) {
        self.entry[2].set(self.entry[2].get() & 0xffff | fresh << 16);
    }

    /// The group for a number of objects; `GROUPS` for a full zspage.
    fn group_for(&self, in_use: u32) -> u32 {
        if in_use >= self.class.objects {
            GROUPS
        } else {
            in_use * GROUPS / self.class.objects
        }
    }
}

impl<'a> Zsmalloc<'a> {
    pub fn new(heap: Heap<'a>) -> Zsmalloc<'a> {
        Zsmalloc { heap }
    }

    fn zspage(&self, run: Run) -> Zspage<'a> {
        let (kind, id, pool) = self.heap.frames.tag(run);
        assert!(
            kind == RunKind::Zspage && pool == self.heap.pool,
            "{run:?} is no zspage of pool {}",
            self.heap.pool
        );
        Zspage {
            run,
            entry: self.heap.frames.entry(run),
            id,
            class: CLASSES.get(id),
        }
    }

    fn zspage_at(&self, first: u32) -> Zspage<'a> {
        self.zspage(self.heap.frames.run_of(first))
    }

    fn place(&self, zspage: &Zspage<'a>, object: u32) -> Zhandle {
        Zhandle::at(zspage.run.offset() + u64::from(object * zspage.class.size))
    }

    fn object_of(&self, zspage: &Zspage<'a>, zhandle: Zhandle) -> u32 {
        let within = (zhandle.offset() - zspage.run.offset()) as u32;
        debug_assert_eq!(
            within % zspage.class.size,
            0,
            "a zhandle names an object's start"
        );
        within / zspage.class.size
    }

    // --- fullness groups ---

    fn link(&self, zspage: &Zspage<'a>, group: u32) {
        zspage.set_group(group);
        if group == GROUPS {
            return;
        }
        let list = &self.heap.class(zspage.id)[group as usize];
        let first = list.get();
        zspage.entry[3].set(first);
        zspage.entry[4].set(0);
        if first != 0 {
            self.zspage_at(first - 1).entry[4].set(zspage.run.first + 1);
        }
        list.set(zspage.run.first + 1);
    }

    fn unlink(&self, zspage: &Zspage<'a>) {
        if zspage.group() == GROUPS {
            return;
        }
        let (next, prev) = (zspage.entry[3].get(), zspage.entry[4].get());
        match prev {
            0 => self.heap.class(zspage.id)[zspage.group() as usize].set(next),
            _ => self.zspage_at(prev - 1).entry[3].set(next),
        }
        if next != 0 {
            self.zspage_at(next - 1).entry[4].set(prev);
        }
    }

    fn regroup(&self, zspage: &Zspage<'a>) {
        let group = zspage.group_for(zspage.in_use());
        if group != zspage.group() {
            self.unlink(zspage);
            self.link(zspage, group);
        }
    }

    /// The fullest zspage with room.
    fn fullest(&self, class: u32) -> Option<Zspage<'a>> {
        let lists = &self.heap.class(class)[..GROUPS as usize];
        let first = lists.iter().rev().map(W32::get).find(|&first| first != 0)?;
        Some(self.zspage_at(first - 1))
    }

    // --- objects ---

    fn new_zspage(&self, id: u32) -> Result<Zspage<'a>, Full> {
        let class = CLASSES.get(id);
        let run = self.heap.take_run(class.run)?;
        let idle = self.heap.frames.committed(run).saturating_sub(class.frames);
        if idle > 0 && !self.heap.frames.is_short(idle) {
            self.heap.decommit(run, class.frames);
        }
        let entry = self.heap.frames.entry(run);
        let zspage = Zspage {
            run,
            entry,
            id,
            class,
        };
        zspage.set_use(0, NO_OBJECT);
        entry[2].set(self.heap.frames.committed(run));
        self.heap
            .frames
            .set_tag(run, RunKind::Zspage, id, self.heap.pool);
        self.link(&zspage, 0);
        self.heap.class(id)[ZSPAGES].add(1);
        Ok(zspage)
    }

    fn drop_zspage(&self, zspage: &Zspage<'a>) {
        self.unlink(zspage);
        self.heap.class(zspage.id)[ZSPAGES].sub(1);
        self.heap.free_run(zspage.run);
    }

    /// Commit the frames the next fresh object reaches, and more of them the more zspages the class has.
    fn commit_for(&self, zspage: &Zspage<'a>, object: u32) -> Result<(), Full> {
        let needed = ((object + 1) * zspage.class.size).div_ceil(FRAME as u32);
        let have = self.heap.frames.committed(zspage.run);
        if needed <= have {
            return Ok(());
        }
        let ahead = self.heap.class(zspage.id)[ZSPAGES].get() / 32;
        let generous = (needed + ahead).min(zspage.class.frames);
        self.heap
            .commit(zspage.run, generous)
            .or_else(|_| self.heap.commit(zspage.run, needed))
    }

    fn take_object(&self, zspage: &Zspage<'a>) -> Result<u32, Full> {
        let free = zspage.first_free();
        if free != NO_OBJECT {
            let next = self.link_word(zspage, free).get();
            if next != NO_OBJECT {
                self.heap.frames.prefetch(self.place(zspage, next), 2); // the next put's
            }
            zspage.set_use(zspage.in_use() + 1, next);
            return Ok(free);
        }
        let fresh = zspage.fresh();
        assert!(
            fresh < zspage.class.objects,
            "a zspage with room has a free object"
        );
        self.commit_for(zspage, fresh)?;
        self.map(self.place(zspage, fresh)).cells[HEADER_WORDS - 1].set(0);
        zspage.set_fresh(fresh + 1);
        zspage.set_use(zspage.in_use() + 1, NO_OBJECT);
        Ok(fresh)
    }

    fn link_word(&self, zspage: &Zspage<'a>, object: u32) -> &'a W32 {
        &self.heap.frames.slot(self.place(zspage, object)).cells[0]
    }

    fn give_object(&self, zspage: &Zspage<'a>, object: u32) {
        self.link_word(zspage, object).set(zspage.first_free());
        zspage.set_use(zspage.in_use() - 1, object);
        self.heap.class(zspage.id)[OBJECTS].sub(1);
        if zspage.in_use() == 0 {
            self.drop_zspage(zspage);
        } else {
            self.regroup(zspage);
        }
    }

    /// An object of a class, in the fullest zspage with room.
    fn alloc_in(&self, class: u32) -> Result<Zhandle, Full> {
        let zspage = match self.fullest(class) {
            Some(zspage) => zspage,
            None => self.new_zspage(class)?,
        };
        let object = self.take_object(&zspage).inspect_err(|_| {
            if zspage.in_use() == 0 {
                self.drop_zspage(&zspage);
            }
        })?;
        self.heap.class(class)[OBJECTS].add(1);
        self.regroup(&zspage);
        Ok(self.place(&zspage, object))
    }

    /// Every slot of a zspage that was ever handed out.
    pub fn slots(&self, run: Run) -> impl Iterator<Item = (Zhandle, Slot<'a>)> + use<'a> {
        let (allocator, zspage) = (*self, self.zspage(run));
        (0..zspage.fresh()).map(move |object| {
            let zhandle = allocator.place(&zspage, object);
            (zhandle, allocator.heap.frames.slot(zhandle))
        })
    }

    /// Objects in use and objects there is room for, per class with any zspage.
    pub fn class_use(&self, class: u32) -> (u32, u32) {
        let cells = self.heap.class(class);
        (cells[ZSPAGES].get(), cells[OBJECTS].get())
    }

    // --- rebuilding and checking ---

    /// Rebuilding: believe the slots of this run, and list it; false when it holds nothing, or nothing believable.
    pub fn adopt(&self, run: Run) -> bool {
        let zspage = self.zspage(run);
        let committed = self.heap.frames.committed(run).min(run.frames);
        let reachable = (committed * FRAME as u32 / zspage.class.size).min(zspage.class.objects);
        let fresh = zspage.fresh().min(reachable);
        zspage.set_fresh(fresh);
        zspage.set_use(0, NO_OBJECT);
        for object in (0..fresh).rev() {
            if self.map(self.place(&zspage, object)).is_valid() {
                zspage.set_use(zspage.in_use() + 1, zspage.first_free());
            } else {
                self.link_word(&zspage, object).set(zspage.first_free());
                zspage.set_use(zspage.in_use(), object);
            }
        }
        if zspage.in_use() == 0 {
            return false;
        }
        self.heap.frames.adopt(run, committed);
        let class = self.heap.class(zspage.id);
        class[ZSPAGES].add(1);
        class[OBJECTS].add(zspage.in_use());
        self.link(&zspage, zspage.group_for(zspage.in_use()));
        true
    }

    /// Whether an entry of this run length can be a zspage at all.
    pub fn is_possible(class: u32, frames: u32) -> bool {
        CLASSES
            .classes
            .get(class as usize)
            .is_some_and(|c| c.run == frames)
    }

    /// Violations in one zspage.
    pub fn check(&self, run: Run, faults: &mut Vec<String>) {
        let zspage = self.zspage(run);
        let valid = self.slots(run).filter(|(_, slot)| slot.is_valid()).count() as u32;
        if valid != zspage.in_use() || valid == 0 {
            faults.push(format!(
                "zspage {run:?} has {valid} valid slots and counts {}",
                zspage.in_use()
            ));
        }
        if zspage.group() != zspage.group_for(zspage.in_use()) {
            faults.push(format!(
                "zspage {run:?} with {valid} objects is in group {}",
                zspage.group()
            ));
        }
        let (mut at, mut free) = (zspage.first_free(), 0);
        while at != NO_OBJECT && free <= zspage.fresh() {
            free += 1;
            if at >= zspage.fresh() || self.map(self.place(&zspage, at)).is_valid() {
                faults.push(format!("zspage {run:?} lists object {at} as free"));
                return;
            }
            at = self.link_word(&zspage, at).get();
        }
        if free + valid != zspage.fresh() {
            faults.push(format!(
                "zspage {run:?}: {free} free and {valid} valid of {} objects",
                zspage.fresh()
            ));
        }
        let reach = (zspage.fresh() * zspage.class.size).div_ceil(FRAME as u32);
        if self.heap.frames.committed(run) < reach {
            faults.push(format!(
                "zspage {run:?} uses {reach} frames, more than are committed"
            ));
        }
    }

    /// Zspages reachable from a class's lists; None where a list is unsound.
    pub fn check_lists(&self, class: u32) -> Option<u32> {
        let mut listed = 0;
        for group in 0..GROUPS {
            let (mut at, mut prev) = (self.heap.class(class)[group as usize].get(), 0);
            while at != 0 {
                let zspage = self.zspage_at(at - 1);
                let sound =
                    zspage.id == class && zspage.group() == group && zspage.entry[4].get() == prev;
                if !sound || listed > self.heap.class(class)[ZSPAGES].get() {
                    return None;
                }
                listed += 1;
                prev = at;
                at = zspage.entry[3].get();
            }
        }
        Some(listed)
    }
}

impl Allocator for Zsmalloc<'_> {
    fn alloc(&self, size: usize) -> Result<Zhandle, Full> {
        let class = CLASSES.of(size).expect("a size some class holds");
        self.alloc_in(class)
    }

    fn free(&self, zhandle: Zhandle) {
        let zspage = self.zspage_at(zhandle.frame());
        self.give_object(&zspage, self.object_of(&zspage, zhandle));
    }

    #[inline(always)]
    fn map(&self, zhandle: Zhandle) -> Slot<'_> {
        self.heap.frames.slot(zhandle)
    }

    fn compact(&self, owner: &dyn Owner) -> bool {
        self.compact_some(owner)
    }

    /// Second chance, a zspage at a time: drop what was not used, and move what was to other zspages of the class. Where
    /// those have no room the used ones stay, their reference spent, and the objects freed serve the class.
    fn evict(&self, run: Run, owner: &dyn Owner) -> bool {
        let zspage = self.zspage(run);
        self.unlink(&zspage);
        zspage.set_group(GROUPS);
        let mut left = zspage.in_use();
        for (zhandle, slot) in self.slots(run).filter(|(_, slot)| slot.is_valid()) {
            if !slot.take_reference() {
                owner.evicted(&slot);
                slot.invalidate();
            } else if !self.move_object(&zspage, zhandle, &slot, owner) {
                continue;
            }
            left -= 1;
            self.link_word(&zspage, self.object_of(&zspage, zhandle))
                .set(zspage.first_free());
            zspage.set_use(left, self.object_of(&zspage, zhandle));
            self.heap.class(zspage.id)[OBJECTS].sub(1);
        }
        if left == 0 {
            self.drop_zspage(&zspage);
        } else {
            self.link(&zspage, zspage.group_for(left));
        }
        left == 0
    }
}

impl<'a> Zsmalloc<'a> {
    /// Move one object to the fullest listed zspage of its class; false when none has room.
    fn move_object(
        &self,
        from: &Zspage<'a>,
        zhandle: Zhandle,
        slot: &Slot<'_>,
        owner: &dyn Owner,
    ) -> bool {
        let Some(to) = self.fullest(from.id) else {
            return false;
        };
        let Ok(object) = self.take_object(&to) else {
            return false;
        };
        self.heap.class(to.id)[OBJECTS].add(1);
        self.regroup(&to);
        let place = self.place(&to, object);
        self.copy_object(from.class, zhandle, place, slot);
        owner.moved(slot, place);
        slot.invalidate();
        true
    }

    /// Copy a valid object to a free place: payload, then header, valid last.
    fn copy_object(&self, class: Class, from: Zhandle, to: Zhandle, slot: &Slot<'_>) {
        let frames = &self.heap.frames;
        let (source, target) = (
            frames.file_offset(from.offset()),
            frames.file_offset(to.offset()),
        );
        let header = slot.header();
        debug_assert!(header.len as usize + HEADER <= class.size as usize);
        let head = HEADER as u64;
        frames
            .arena()
            .map()
            .copy_within(source + head, target + head, header.len as usize);
        frames.slot(to).publish(&header);
    }
}
