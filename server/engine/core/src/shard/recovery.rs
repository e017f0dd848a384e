//! Recovery: a shard made whole again from its slots.
//!
//! The slots, the object records, the segments' run lengths and the runs' tags are the truth, each published by one store;
//! everything else is derived and made anew: index, free lists, fullness groups, buddies, gauges, what is committed.
//! Of two slots with one key the one whose number is nearest the shard's counter is kept: the counter moves just before a
//! slot is stamped, so the newer of a put that was cut short is at distance 0, and numbers may wrap.

use crate::alloc::frames::{Run, RunKind};
use crate::alloc::heap::{Heap, heap_bytes, punch_unmade, rebuild_budget};
use crate::alloc::slot::{HEADER, Slot, Zhandle};
use crate::alloc::zbud::Zbud;
use crate::alloc::zsmalloc::{CLASSES, Zsmalloc};
use crate::arena::{Arena, Full};
use crate::codec::{Compressor, Form, checksum};
use crate::error::{Error, Result};
use crate::pool_table;
use crate::shard::Shard;
use crate::types::{CLUSTER, FRAME, MAX_POOLS};

/// Most runs committed again to be kept, after a crash.
const RUNS_MISSED: u32 = 8;

/// Rebuild a shard, its lock held. `deep`: its bytes are in doubt too, so every persistent
/// page is decoded and verified, and ephemeral ones are forgotten.
pub fn rebuild(arena: &Arena, id: u32, deep: bool) -> Result<()> {
    let shard = Shard::new(arena, id, rebuild_budget(arena, id));
    let rebuild = Rebuild {
        shard: &shard,
        deep,
    };
    rebuild.run().map_err(|full| Error::Damaged {
        shard: id,
        why: format!("there is no memory to rebuild it ({full:?})"),
    })
}

struct Rebuild<'s, 'a> {
    shard: &'s Shard<'a>,
    deep: bool,
}

impl<'a> Rebuild<'_, 'a> {
    fn run(&self) -> std::result::Result<(), Full> {
        let shard = self.shard;
        let segments = shard.frames.begin_rebuild();
        for heap in self.heaps() {
            heap.begin_rebuild();
        }
        shard.nodes.reset();
        let live = |pool| pool_table::is_live(shard.arena, pool);
        shard.objects.begin_rebuild(live, shard.hash_of())?;
        self.each_run(segments, |run| self.index_run(run))?;
        let mut frames = vec![0; MAX_POOLS];
        self.each_run(segments, |run| {
            if let Some(heap) = self.adopt_run(run) {
                frames[heap.pool as usize] += u64::from(shard.frames.committed(run));
            }
            Ok(())
        })?;
        for heap in self.heaps() {
            heap.end_rebuild(frames[heap.pool as usize]);
        }
        shard.objects.end_rebuild(shard.hash_of());
        // What is derived takes no more than it did, so that the limit still holds.
        shard.objects.trim();
        shard.nodes.trim();
        self.recount();
        // What was on its way when the crash came may be missing; the machine may not have it now, and is asked again later.
        let _ = shard.frames.stock(RUNS_MISSED);
        shard.head.recoveries.add(1);
        Ok(())
    }

    fn heaps(&self) -> impl Iterator<Item = Heap<'a>> {
        (0..MAX_POOLS as u32).filter_map(|pool| self.shard.heap(pool))
    }

    fn each_run(
        &self,
        segments: u32,
        mut body: impl FnMut(Run) -> std::result::Result<(), Full>,
    ) -> std::result::Result<(), Full> {
        let frames = &self.shard.frames;
        for segment in (0..segments).filter(|&segment| frames.run_length(segment) != 0) {
            for number in 0..frames.fresh(segment) {
                body(frames.run(segment, number))?;
            }
        }
        Ok(())
    }

    /// The heap a run belongs to, if its entry is believable.
    fn owner(&self, run: Run) -> Option<(RunKind, Heap<'a>)> {
        let frames = &self.shard.frames;
        if frames.entry(run)[0].get() >> 28 > RunKind::Raw as u32 {
            return None;
        }
        let (kind, class, pool) = frames.tag(run);
        if matches!(kind, RunKind::Free | RunKind::Reserved)
            || !pool_table::is_live(self.shard.arena, pool)
        {
            return None;
        }
        if self.deep && pool_table::is_ephemeral(self.shard.arena, pool) {
            return None; // it may be a page that was flushed, come back with the bytes: better forgotten
        }
        let heap = self.shard.heap(pool)?;
        let whole =
            run.frames == heap.page_size / FRAME as u32 && frames.committed(run) == run.frames;
        let possible = match kind {
            RunKind::Zspage => {
                Zsmalloc::is_possible(class, run.frames) && frames.committed(run) <= run.frames
            }
            _ => whole,
        };
        possible.then_some((kind, heap))
    }

    /// Index the pages of a run, newer over older.
    fn index_run(&self, run: Run) -> std::result::Result<(), Full> {
        let Some((kind, heap)) = self.owner(run) else {
            return Ok(());
        };
        for (place, slot, room) in self.slots(kind, run, &heap) {
            if !slot.is_valid() {
                continue;
            }
            if self.is_believable(&slot, &heap, room) {
                self.enter(place, &slot)?;
            } else {
                slot.invalidate();
                self.shard.head.slots_dropped.add(1);
            }
        }
        Ok(())
    }

    /// The slots of a run, each with the bytes of payload it has room for.
    fn slots(&self, kind: RunKind, run: Run, heap: &Heap<'a>) -> Vec<(Zhandle, Slot<'a>, u32)> {
        let frames = &self.shard.frames;
        let committed = u64::from(frames.committed(run)) * FRAME as u64;
        match kind {
            RunKind::Zspage => {
                let class = CLASSES.get(frames.tag(run).1);
                let reach = (committed / u64::from(class.size)).min(class.objects.into()) as usize;
                let slots = Zsmalloc::new(*heap).slots(run).take(reach);
                slots
                    .map(|(place, slot)| (place, slot, class.size - HEADER as u32))
                    .collect()
            }
            RunKind::Zbud => {
                let end = run.offset() + run.bytes();
                let sound =
                    |place: &Zhandle| place.offset() >= run.offset() && place.offset() + 64 <= end;
                let word = frames.entry(run)[1].get();
                if (word & 0xff) + (word >> 8 & 0xff) > crate::alloc::zbud::CHUNKS {
                    return Vec::new();
                }
                let slots = Zbud::new(*heap)
                    .slots(run)
                    .filter(|(place, _)| sound(place));
                slots
                    .map(|(place, slot)| {
                        (place, slot, (end - place.offset()) as u32 - HEADER as u32)
                    })
                    .collect()
            }
            _ => vec![(
                Zhandle::raw(run.first),
                frames.raw_slot(run),
                heap.page_size,
            )],
        }
    }

    fn is_believable(&self, slot: &Slot<'_>, heap: &Heap<'a>, room: u32) -> bool {
        let header = slot.header();
        let form = Form::from_bits(header.form);
        form.is_some()
            && header.len <= room
            && header.len <= heap.page_size
            && self.shard.objects.is_object_of(header.object, heap.pool)
            && (!self.deep || self.verifies(slot, heap.page_size))
    }

    fn verifies(&self, slot: &Slot<'_>, page_size: u32) -> bool {
        let header = slot.header();
        let (mut block, mut page) = (Vec::new(), vec![0; page_size as usize]);
        self.shard
            .arena
            .map()
            .copy_out(slot.payload, header.len as usize, &mut block);
        let form = Form::from_bits(header.form).expect("checked before");
        Compressor::new().decode(form, &block, &mut page).is_ok()
            && checksum(&page) == header.checksum
    }

    fn enter(&self, place: Zhandle, slot: &Slot<'_>) -> std::result::Result<(), Full> {
        let shard = self.shard;
        let header = slot.header();
        let (cluster, page) = (header.index / CLUSTER, header.index % CLUSTER);
        let known = shard.nodes.find(header.object, cluster);
        let Some((node, other)) =
            known.and_then(|node| Some((node, shard.nodes.word(node, page)?)))
        else {
            shard.nodes.insert(header.object, cluster, page, place.0)?;
            shard.objects.add_page(header.object, cluster);
            shard.head.slots_replayed.add(1);
            return Ok(());
        };
        let other = shard.frames.slot(Zhandle(other));
        let age = |seq: u32| shard.head.seq.get().wrapping_sub(seq);
        if age(header.seq) < age(other.header().seq) {
            shard.nodes.replace(node, page, place.0);
            other.invalidate();
        } else {
            slot.invalidate();
        }
        Ok(())
    }

    /// Give a run back to its heap, which is returned, or to nobody.
    fn adopt_run(&self, run: Run) -> Option<Heap<'a>> {
        let adopt = |kind, heap| match kind {
            RunKind::Zspage => Zsmalloc::new(heap).adopt(run),
            RunKind::Zbud => Zbud::new(heap).adopt(run),
            _ => self.adopt_raw(run),
        };
        let Some((kind, heap)) = self.owner(run).filter(|&(kind, heap)| adopt(kind, heap)) else {
            // After a loss of power frames may be no frames any more.
            if self.deep || !self.shard.frames.adopt_kept(run) {
                self.shard.frames.discard(run);
            }
            return None;
        };
        for (_, slot, _) in self.slots(kind, run, &heap) {
            if slot.is_valid() {
                let header = slot.header();
                heap.count_page(Form::from_bits(header.form).expect("believed"), header.len);
            }
        }
        Some(heap)
    }

    fn adopt_raw(&self, run: Run) -> bool {
        let valid = self.shard.frames.raw_slot(run).is_valid();
        if valid {
            self.shard.frames.adopt(run, run.frames);
        }
        valid
    }

    /// Count anew what the shard has committed, and give back what nothing accounts for.
    fn recount(&self) {
        let (shard, frame) = (self.shard, FRAME as u64);
        let kept = shard.frames.end_rebuild();
        punch_unmade(shard.arena, shard.id);
        let heaps = heap_bytes(shard.arena, shard.id);
        let derived: u64 = shard.head.tables[..crate::arena::TableId::Segments as usize]
            .iter()
            .map(|table| table.committed.get())
            .sum();
        let count = &shard.head.committed;
        count.fetch_add((frame + heaps + derived + kept).wrapping_sub(count.get_ordered()));
    }
}
