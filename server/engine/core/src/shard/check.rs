//! check: does everything in a shard agree with everything else?
//!
//! Each run is in one place and has one use; each valid slot is indexed under its own key and each index entry names a
//! valid slot; lists, gauges and committed bytes add up. Runs under the shard lock, on an arena in use.

use std::collections::HashMap;

use crate::alloc::frames::{Run, RunKind};
use crate::alloc::heap::{Heap, heap_bytes};
use crate::alloc::slot::Zhandle;
use crate::alloc::zbud::Zbud;
use crate::alloc::zsmalloc::{CLASSES, Zsmalloc};
use crate::codec::Form;
use crate::outcome::{Counter, GAUGES};
use crate::pool_table;
use crate::shard::Shard;
use crate::types::{CLUSTER, FRAME, MAX_POOLS};

/// What the runs of one pool add up to.
#[derive(Default)]
struct Sum {
    gauges: [u64; GAUGES],
    /// Zspages with room, zspages and objects, by class.
    classes: HashMap<u32, (u32, u32, u32)>,
    unbuddied: u32,
}

/// Violations in a shard.
pub fn check(shard: &Shard<'_>) -> Vec<String> {
    let mut faults = Vec::new();
    let frames = shard.frames.check(&mut faults);
    let sums = check_runs(shard, &mut faults);
    check_index(shard, &sums, &mut faults);
    check_heaps(shard, &sums, &mut faults);
    check_committed(shard, frames, &mut faults);
    let place = format!("shard {}: ", shard.id);
    faults
        .into_iter()
        .map(|fault| place.clone() + &fault)
        .collect()
}

fn check_runs(shard: &Shard<'_>, faults: &mut Vec<String>) -> HashMap<u32, Sum> {
    let mut sums: HashMap<u32, Sum> = HashMap::new();
    let frames = &shard.frames;
    for segment in (0..frames.segment_count()).filter(|&s| frames.run_length(s) != 0) {
        for number in 0..frames.fresh(segment) {
            let run = frames.run(segment, number);
            let (kind, _, pool) = frames.tag(run);
            if matches!(kind, RunKind::Free | RunKind::Reserved) {
                continue;
            }
            match shard
                .heap(pool)
                .filter(|_| pool_table::is_live(shard.arena, pool))
            {
                Some(heap) => check_run(
                    shard,
                    &heap,
                    kind,
                    run,
                    sums.entry(pool).or_default(),
                    faults,
                ),
                None => faults.push(format!(
                    "{run:?} belongs to pool {pool}, which does not exist"
                )),
            }
        }
    }
    sums
}

fn check_run(
    shard: &Shard<'_>,
    heap: &Heap<'_>,
    kind: RunKind,
    run: Run,
    sum: &mut Sum,
    faults: &mut Vec<String>,
) {
    let mut pages = 0;
    for place in shard.pages_in(heap, run) {
        pages += 1;
        check_page(shard, heap, place, sum, faults);
    }
    sum.gauges[Counter::Frames as usize] += u64::from(shard.frames.committed(run));
    match kind {
        RunKind::Zspage => {
            Zsmalloc::new(*heap).check(run, faults);
            let class = shard.frames.tag(run).1;
            let (with_room, zspages, objects) = sum.classes.entry(class).or_default();
            *with_room += u32::from(pages < CLASSES.get(class).objects);
            *zspages += 1;
            *objects += pages;
        }
        RunKind::Zbud => {
            Zbud::new(*heap).check(run, faults);
            sum.unbuddied += u32::from(Zbud::new(*heap).is_unbuddied(run));
        }
        _ if pages == 0 => faults.push(format!("raw {run:?} holds no page")),
        _ => {}
    }
}

fn check_page(
    shard: &Shard<'_>,
    heap: &Heap<'_>,
    place: Zhandle,
    sum: &mut Sum,
    faults: &mut Vec<String>,
) {
    let header = shard.frames.slot(place).header();
    let node = shard.nodes.find(header.object, header.index / CLUSTER);
    let indexed = node.and_then(|node| shard.nodes.word(node, header.index % CLUSTER));
    if indexed != Some(place.0) {
        faults.push(format!(
            "page {} of object {} is at {place:?}, and indexed at {indexed:?}",
            header.index, header.object
        ));
    }
    if !shard.objects.is_object_of(header.object, heap.pool) {
        faults.push(format!(
            "{place:?} is of object {}, which pool {} does not have",
            header.object, heap.pool
        ));
    }
    sum.gauges[Counter::Pages as usize] += 1;
    sum.gauges[Counter::Payload as usize] += u64::from(header.len);
    match Form::from_bits(header.form) {
        Some(Form::Same) => sum.gauges[Counter::SameFilled as usize] += 1,
        Some(Form::Raw) => sum.gauges[Counter::Raw as usize] += 1,
        Some(_) => {}
        None => faults.push(format!("{place:?} has the unknown form {}", header.form)),
    }
}

fn check_index(shard: &Shard<'_>, sums: &HashMap<u32, Sum>, faults: &mut Vec<String>) {
    let mut entries = 0;
    let mut by_object: HashMap<u32, u32> = HashMap::new();
    let mut wrong = Vec::new();
    shard.nodes.check(faults, |object, cluster, page, word| {
        entries += 1;
        *by_object.entry(object).or_default() += 1;
        let slot = shard.frames.slot(Zhandle(word));
        let header = slot.header();
        if !slot.is_valid() || (header.object, header.index) != (object, cluster * CLUSTER + page) {
            wrong.push(format!(
                "object {object} page {} is indexed at a slot that is not its own",
                cluster * CLUSTER + page
            ));
        }
    });
    faults.append(&mut wrong);
    let slots: u64 = sums
        .values()
        .map(|sum| sum.gauges[Counter::Pages as usize])
        .sum();
    if slots != entries {
        faults.push(format!("{slots} valid slots, and {entries} index entries"));
    }
    shard
        .objects
        .check(faults, shard.hash_of(), |object, pages| {
            let indexed = by_object.get(&object).copied().unwrap_or(0);
            if indexed != pages {
                wrong.push(format!(
                    "object {object} counts {pages} pages, and {indexed} are indexed"
                ));
            }
        });
    faults.append(&mut wrong);
}

fn check_heaps(shard: &Shard<'_>, sums: &HashMap<u32, Sum>, faults: &mut Vec<String>) {
    let none = Sum::default();
    for heap in (0..MAX_POOLS as u32).filter_map(|pool| shard.heap(pool)) {
        let sum = sums.get(&heap.pool).unwrap_or(&none);
        let counted: Vec<u64> = heap.head.counters().take(GAUGES).map(|c| c.get()).collect();
        if counted != sum.gauges {
            faults.push(format!(
                "pool {} counts {counted:?}, and holds {:?}",
                heap.pool, sum.gauges
            ));
        }
        if Zbud::new(heap).check_lists() != Some(sum.unbuddied) {
            faults.push(format!(
                "pool {}: its unbuddied lists do not hold its {} pages",
                heap.pool, sum.unbuddied
            ));
        }
        for class in 0..CLASSES.classes.len() as u32 {
            check_class(
                &Zsmalloc::new(heap),
                class,
                sum.classes.get(&class).copied().unwrap_or_default(),
                faults,
            );
        }
    }
}

fn check_class(
    zsmalloc: &Zsmalloc<'_>,
    class: u32,
    (with_room, zspages, objects): (u32, u32, u32),
    faults: &mut Vec<String>,
) {
    let counted = zsmalloc.class_use(class);
    if counted != (zspages, objects) {
        faults.push(format!(
            "class {class} counts {counted:?} zspages and objects, and has {:?}",
            (zspages, objects)
        ));
    }
    let listed = zsmalloc.check_lists(class);
    if listed != Some(with_room) {
        faults.push(format!(
            "class {class} lists {listed:?} zspages with room, and has {with_room}"
        ));
    }
}

fn check_committed(shard: &Shard<'_>, frames: u64, faults: &mut Vec<String>) {
    let segments = crate::arena::TableId::Segments as usize;
    let derived: u64 = shard.head.tables[..segments]
        .iter()
        .map(|table| table.committed.get())
        .sum();
    let frame = FRAME as u64;
    let heaps = heap_bytes(shard.arena, shard.id);
    let sum = frame + heaps + derived + shard.frames.table_bytes() + frames * frame;
    let counted = shard.head.committed.get();
    if sum != counted {
        faults.push(format!("{sum} bytes are committed, and {counted} counted"));
    }
}
