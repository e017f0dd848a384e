//! Size classes: in 16-byte steps, merged where zspages come out alike.
//!
//! A class is a number of frames to a zspage and of objects in it. For each size the zspage is chosen that costs the
//! fewest bytes of memory an object, its frame-table entry included; sizes with the same answer share a class. Since
//! frames of a zspage are committed one by one, a long zspage costs a rare class nothing, and long ones waste least.
//! Large objects, those of pages of more than 4 KiB, get longer zspages, since few of them fit one and what is left over is large:
//! as many as the longest holds, in the fewest frames. Finer classes would gain a few tenths of a percent, and be many.
//! Their zspages lie in runs of two lengths whose last frames are never committed: each length of run has segments of its own,
//! and so pages of the frame table of its own.

use std::sync::LazyLock;

use crate::arena::{ENTRY, MAX_RUN};
use crate::types::{FRAME, MAX_PAGE};

/// Bytes from one size to the next.
pub const STEP: usize = 16;
/// The smallest slot.
pub const SMALLEST: usize = 32;
/// Frames to a zspage at most, of objects up to `LARGE` bytes.
const CHAIN: u32 = 16;
const LARGE: usize = 2 * FRAME;
/// The same of objects up to `HUGE` bytes; of larger ones it is the longest run.
const LONG_CHAIN: u32 = MAX_RUN / 2;
const HUGE: usize = 4 * FRAME;
/// Most objects in a zspage: bounds the work of evicting or moving one.
const MOST_OBJECTS: u32 = 256;

/// A size class.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Class {
    /// Bytes from one object to the next.
    pub size: u32,
    /// Frames to a zspage.
    pub frames: u32,
    /// Frames to its run, of which no more than `frames` are committed for it.
    pub run: u32,
    /// Objects to a zspage.
    pub objects: u32,
}

impl Class {
    /// Bytes of memory an object costs in a full zspage, in 256ths.
    fn cost(self) -> u64 {
        let zspage = u64::from(self.frames) * FRAME as u64 + ENTRY;
        (zspage << 8).div_ceil(u64::from(self.objects))
    }
}

/// All classes, smallest first, and which class a size belongs to.
pub struct Classes {
    pub classes: Vec<Class>,
    by_step: Vec<u16>,
}

impl Classes {
    /// Classes for zspages of up to `chain` frames, or of the longest where objects are large, up to `largest` bytes.
    pub fn build(chain: u32, largest: usize) -> Classes {
        let mut classes: Vec<Class> = Vec::new();
        let mut by_step = vec![0; SMALLEST / STEP];
        for size in (SMALLEST..=largest).step_by(STEP) {
            let class = if size <= LARGE {
                best(size as u32, chain)
            } else {
                let chain = if size <= HUGE { LONG_CHAIN } else { MAX_RUN };
                roomiest(size as u32, chain)
            };
            if classes
                .last()
                .is_none_or(|last| (last.frames, last.objects) != (class.frames, class.objects))
            {
                classes.push(class);
            }
            by_step.push((classes.len() - 1) as u16);
        }
        Classes { classes, by_step }
    }

    /// The class for objects of `size` bytes; None where they are too large for any.
    #[inline(always)]
    pub fn of(&self, size: usize) -> Option<u32> {
        self.by_step
            .get(size.div_ceil(STEP))
            .map(|&class| u32::from(class))
    }

    #[inline(always)]
    pub fn get(&self, class: u32) -> Class {
        self.classes[class as usize]
    }

    /// The largest payload worth keeping compressed: it saves a 32nd of a page at least, or else the page is kept raw
    /// and need never be decompressed.
    pub fn largest_payload(&self, page: usize, header: usize) -> usize {
        let most = (page as u64 - page as u64 / 32) << 8;
        let worth = |size: &usize| {
            self.of(*size)
                .is_some_and(|class| self.get(class).cost() <= most)
        };
        let largest = (SMALLEST..page).step_by(STEP).rev().find(worth);
        largest.unwrap_or(SMALLEST) - header
    }
}

/// The zspage that costs the fewest bytes an object.
fn best(size: u32, chain: u32) -> Class {
    let zspage = |frames: u32| {
        let objects = (frames * FRAME as u32 / size).min(MOST_OBJECTS);
        (objects > 0).then(|| class(size, frames, frames, objects))
    };
    let fits = (1..=chain).filter_map(zspage);
    // Where two cost the same the longer is listed later and wins: fewer entries in the frame table.
    fits.min_by_key(|class| class.cost())
        .expect("an object is smaller than the longest zspage")
}

/// The zspage of as many objects as `chain` frames hold.
fn roomiest(size: u32, chain: u32) -> Class {
    let objects = chain * FRAME as u32 / size;
    class(
        size,
        (objects * size).div_ceil(FRAME as u32),
        chain,
        objects,
    )
}

/// Objects of `size` bytes, or of so many more as the zspage leaves room for.
fn class(size: u32, frames: u32, run: u32, objects: u32) -> Class {
    let room = frames * FRAME as u32 / objects / STEP as u32 * STEP as u32;
    Class {
        size: room.max(size),
        frames,
        run,
        objects,
    }
}

/// The classes in use.
pub static CLASSES: LazyLock<Classes> = LazyLock::new(|| Classes::build(CHAIN, MAX_PAGE));

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arena::{CLASS_WORDS, HEAP_FRAMES};

    #[test]
    fn every_size_fits_its_class_and_every_class_fits_its_zspage() {
        for size in 1..=MAX_PAGE {
            let class = CLASSES.get(CLASSES.of(size).expect("a class"));
            assert!(class.size as usize >= size, "{size} in {class:?}");
            assert!(
                class.size * class.objects <= class.frames * FRAME as u32,
                "{class:?}"
            );
        }
    }

    #[test]
    fn no_two_classes_have_zspages_alike_and_sizes_rise() {
        for pair in CLASSES.classes.windows(2) {
            assert!(pair[0].size < pair[1].size, "{pair:?}");
        }
        assert!(
            CLASSES.classes.len() as u64 * CLASS_WORDS * 4 <= (HEAP_FRAMES - 1) * FRAME as u64,
            "{} classes do not fit the heap's table",
            CLASSES.classes.len()
        );
    }

    #[test]
    fn a_large_object_wastes_little_of_its_zspage() {
        for (from, to, most) in [
            (8 << 10, 16 << 10, 8),
            (16 << 10, 32 << 10, 4),
            (32 << 10, 64 << 10, 5),
            (64 << 10, 128 << 10, 5),
            (128 << 10, 256 << 10, 5),
        ] {
            let wasted = |size: usize| {
                let class = CLASSES.get(CLASSES.of(size).expect("a class"));
                (class.frames as usize * FRAME) as f64 / f64::from(class.objects) / size as f64
                    - 1.0
            };
            let sizes = (from..to).step_by(STEP);
            let mean = sizes.clone().map(wasted).sum::<f64>() / sizes.count() as f64;
            assert!(
                mean * 1000.0 < f64::from(most),
                "objects of {from} to {to} bytes waste {mean}"
            );
        }
    }

    /// Each length that is in use takes a page of the frame table in every shard at least.
    #[test]
    fn large_objects_lie_in_runs_of_few_lengths() {
        let mut lengths: Vec<u32> = CLASSES.classes.iter().map(|class| class.run).collect();
        lengths.sort_unstable();
        lengths.dedup();
        assert!(lengths.len() <= CHAIN as usize + 2, "{lengths:?}");
        for class in &CLASSES.classes {
            assert!(
                class.frames <= class.run && class.run <= MAX_RUN,
                "{class:?}"
            );
        }
    }

    /// semantics.md section 6: bytes of memory per object with chains of 8 frames. Theirs hold an 8-byte handle.
    #[test]
    fn no_object_costs_more_memory_than_in_the_kernels_zsmalloc() {
        let kernel = [
            (300, 320),
            (694, 706),
            (1200, 1229),
            (2048, 2185),
            (2300, 2341),
            (2700, 2731),
            (3000, 3072),
            (3400, 3413),
            (3600, 3641),
        ];
        let ours = Classes::build(8, FRAME);
        for (payload, theirs) in kernel {
            let class = ours.get(ours.of(payload + 8).expect("a class"));
            let bytes = class.frames * FRAME as u32 / class.objects;
            assert!(
                bytes <= theirs,
                "{payload}: {bytes} bytes an object, the kernel's {theirs}"
            );
        }
    }

    /// semantics.md section 6: chains of 4, 8 and 16 frames leave 69, 119 and 192 classes, huge from 3264, 3632 and 3840.
    #[test]
    fn longer_zspages_make_finer_classes_as_in_the_kernel() {
        for (chain, classes, huge) in [(4, 69, 3264), (8, 119, 3632), (16, 192, 3840)] {
            let ours = Classes::build(chain, FRAME - STEP);
            let lone = |c: &Class| c.objects == c.frames;
            let first_huge = ours
                .classes
                .iter()
                .find(|c| lone(c))
                .map_or(FRAME as u32, |c| c.size);
            let below = ours
                .classes
                .iter()
                .filter(|c| !lone(c))
                .map(|c| c.size)
                .max()
                .expect("a class");
            assert!(
                ours.classes.len() <= classes + classes / 8,
                "chain {chain}: {} classes",
                ours.classes.len()
            );
            assert!(
                below + STEP as u32 >= huge,
                "chain {chain}: objects of {huge} bytes share frames ({below}, {first_huge})"
            );
        }
    }
}
