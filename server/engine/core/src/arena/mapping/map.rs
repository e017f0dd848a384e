//! The mapping: one file, mapped whole and shared, read and written through bounds-checked offsets.
//!
//! Every `unsafe` of the arena that touches mapped bytes is here. An offset outside the mapping panics; the shard
//! that was being worked on is then rebuilt, as after a crash. Byte ranges handed to `copy_in` and `copy_out` are
//! guarded by their shard's lock, held by the caller; words are atomic and need none to be sound.

#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;
use std::sync::atomic::Ordering::SeqCst;

use super::cell::{W32, W64, crash_point};
use super::registry::Entry;
use super::sigbus;
use crate::types::FRAME;

const MADV_POPULATE_WRITE: libc::c_int = 23;

/// A type made of cells alone, so that any bytes are a valid value and sharing it is sound.
///
/// # Safety
/// Every field must be a `W32`, a `W64`, a `LockWord` or an array of them, with no padding that matters.
pub unsafe trait Overlay {}
// SAFETY: cells are atomics.
unsafe impl Overlay for W32 {}
// SAFETY: cells are atomics.
unsafe impl Overlay for W64 {}

/// Why frames could not be had from the operating system.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NoSpace;

/// A shared mapping of a whole file.
pub struct Map {
    base: NonNull<u8>,
    len: u64,
    file: File,
    entry: &'static Entry,
}

// SAFETY: all access goes through atomics or through byte copies guarded by a process-shared lock.
unsafe impl Send for Map {}
// SAFETY: as above.
unsafe impl Sync for Map {}

impl Map {
    pub fn new(file: File, len: u64) -> io::Result<Map> {
        if system_page() != FRAME as i64 {
            let why = format!(
                "tmem needs a system with pages of {FRAME} bytes; this one has {}",
                system_page()
            );
            return Err(io::Error::new(io::ErrorKind::Unsupported, why));
        }
        let size = usize::try_from(len).map_err(|_| io::Error::from_raw_os_error(libc::EFBIG))?;
        sigbus::install();
        let entry = Entry::claim()?;
        let mapped = Map::map(&file, size).inspect_err(|_| entry.free())?;
        entry.file.store(file.as_raw_fd(), SeqCst);
        entry.len.store(size, SeqCst);
        entry.base.store(mapped.as_ptr() as usize, SeqCst);
        let map = Map {
            base: mapped,
            len,
            file,
            entry,
        };
        map.advise_all(libc::MADV_DONTDUMP).ok();
        Ok(map)
    }

    fn map(file: &File, size: usize) -> io::Result<NonNull<u8>> {
        // SAFETY: a fresh mapping at an address of the kernel's choice; the result is checked.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                size,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_NORESERVE,
                file.as_raw_fd(),
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        NonNull::new(base.cast()).ok_or_else(io::Error::last_os_error)
    }

    pub fn file(&self) -> &File {
        &self.file
    }

    pub fn entry(&self) -> &'static Entry {
        self.entry
    }

    /// Notice a file that was cut short, if nobody did so far.
    pub fn look(&self) {
        let short = |meta: std::fs::Metadata| meta.len() < self.len;
        if self.file.metadata().is_ok_and(short) {
            self.entry.broken.store(true, SeqCst);
        }
    }

    /// Whether bytes of it could not be had: it is cut off from its file, and reads as zeros.
    #[inline(always)]
    pub fn is_broken(&self) -> bool {
        self.entry.is_broken()
    }

    #[inline(always)]
    fn at(&self, offset: u64, len: usize) -> *mut u8 {
        let fits = offset
            .checked_add(len as u64)
            .is_some_and(|end| end <= self.len);
        assert!(fits, "offset {offset}+{len} is outside the arena");
        // SAFETY: just checked to lie inside the mapping.
        unsafe { self.base.as_ptr().add(offset as usize) }
    }

    /// The cells of type `T` at an offset aligned to it.
    #[inline(always)]
    pub fn view<T: Overlay>(&self, offset: u64) -> &T {
        let at = self.at(offset, size_of::<T>());
        assert!(
            (at as usize).is_multiple_of(align_of::<T>()),
            "offset {offset} is misaligned"
        );
        // SAFETY: inside the mapping, aligned, and `T` is made of atomics, so any bytes do and sharing is sound.
        unsafe { &*at.cast::<T>() }
    }

    /// `count` 32-bit cells from a 4-byte aligned offset.
    #[inline(always)]
    pub fn words(&self, offset: u64, count: usize) -> &[W32] {
        let at = self.at(offset, count * 4);
        assert!(
            (at as usize).is_multiple_of(4),
            "offset {offset} is misaligned"
        );
        // SAFETY: as in `view`.
        unsafe { std::slice::from_raw_parts(at.cast::<W32>(), count) }
    }

    /// Copy bytes into the arena. The range's lock is held.
    #[inline(always)]
    pub fn copy_in(&self, offset: u64, bytes: &[u8]) {
        crash_point();
        let at = self.at(offset, bytes.len());
        // SAFETY: inside the mapping; `bytes` is ordinary memory, so they do not overlap.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), at, bytes.len()) }
    }

    /// Append `len` bytes of the arena to `out`. The range's lock is held.
    #[inline(always)]
    pub fn copy_out(&self, offset: u64, len: usize, out: &mut Vec<u8>) {
        let at = self.at(offset, len);
        out.reserve(len);
        // SAFETY: inside the mapping; `out` has room for `len` more bytes, which the copy initialises.
        unsafe {
            std::ptr::copy_nonoverlapping(at, out.as_mut_ptr().add(out.len()), len);
            out.set_len(out.len() + len);
        }
    }

    /// Move bytes within the arena, between ranges that do not overlap. Their lock is held.
    pub fn copy_within(&self, from: u64, to: u64, len: usize) {
        crash_point();
        let (src, dst) = (self.at(from, len), self.at(to, len));
        // SAFETY: both inside the mapping; `copy` allows any overlap.
        unsafe { std::ptr::copy(src, dst, len) }
    }

    /// Zero a range. Its lock is held.
    pub fn zero(&self, offset: u64, len: usize) {
        crash_point();
        let at = self.at(offset, len);
        // SAFETY: inside the mapping.
        unsafe { std::ptr::write_bytes(at, 0, len) }
    }

    /// Ask for the cache lines at `offset` ahead of time.
    #[inline(always)]
    pub fn prefetch(&self, offset: u64) {
        #[cfg(target_arch = "x86_64")]
        if offset < self.len {
            // SAFETY: a prefetch never faults, and the address is inside the mapping.
            unsafe {
                use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
                _mm_prefetch::<_MM_HINT_T0>(self.base.as_ptr().add(offset as usize).cast());
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = offset;
    }

    /// Have the file system reserve, and the kernel map, whole frames, before anything is written there.
    pub fn populate(&self, offset: u64, len: u64) -> Result<(), NoSpace> {
        debug_assert!(offset.is_multiple_of(FRAME as u64) && len.is_multiple_of(FRAME as u64));
        let at = self.at(offset, len as usize);
        if self.is_broken() {
            return Err(NoSpace);
        }
        // SAFETY: the range is inside the mapping; populating changes no contents.
        if unsafe { libc::madvise(at.cast(), len as usize, MADV_POPULATE_WRITE) } == 0 {
            return Ok(());
        }
        match io::Error::last_os_error().raw_os_error() {
            Some(libc::EINVAL) => self.reserve(offset, len), // a kernel before 5.14
            _ => {
                self.punch(offset, len);
                Err(NoSpace)
            }
        }
    }

    /// Have the kernel map frames that are committed already. They stay whatever comes of it.
    pub fn populate_again(&self, offset: u64, len: u64) -> Result<(), NoSpace> {
        let at = self.at(offset, len as usize);
        // SAFETY: the range is inside the mapping; populating changes no contents.
        let done = unsafe { libc::madvise(at.cast(), len as usize, MADV_POPULATE_WRITE) } == 0;
        let unknown = || io::Error::last_os_error().raw_os_error() == Some(libc::EINVAL); // before 5.14
        if done || unknown() {
            Ok(())
        } else {
            Err(NoSpace)
        }
    }

    fn reserve(&self, offset: u64, len: u64) -> Result<(), NoSpace> {
        // SAFETY: a plain system call on a descriptor this value owns.
        let done = unsafe { libc::fallocate(self.file.as_raw_fd(), 0, offset as i64, len as i64) };
        if done == 0 { Ok(()) } else { Err(NoSpace) }
    }

    /// Give whole frames back to the system; they read as zeros when next populated.
    pub fn punch(&self, offset: u64, len: u64) {
        debug_assert!(offset.is_multiple_of(FRAME as u64) && len.is_multiple_of(FRAME as u64));
        if len == 0 || self.is_broken() {
            return;
        }
        self.at(offset, len as usize);
        crash_point();
        let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        // SAFETY: a plain system call on a descriptor this value owns.
        let done =
            unsafe { libc::fallocate(self.file.as_raw_fd(), mode, offset as i64, len as i64) };
        if done != 0 {
            // A file system that punches no holes keeps the frames; they must still read as zeros.
            self.zero(offset, len as usize);
        }
    }

    /// `madvise` the whole mapping.
    pub fn advise_all(&self, advice: libc::c_int) -> io::Result<()> {
        // SAFETY: the range is the mapping itself; the advice used changes no contents.
        match unsafe { libc::madvise(self.base.as_ptr().cast(), self.len as usize, advice) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Lock every frame in memory as it is first used.
    pub fn lock_on_fault(&self) -> io::Result<()> {
        // SAFETY: the range is the mapping itself.
        let done = unsafe {
            libc::mlock2(
                self.base.as_ptr().cast(),
                self.len as usize,
                libc::MLOCK_ONFAULT as _,
            )
        };
        if done == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        self.entry.base.store(0, SeqCst);
        // SAFETY: the mapping is ours and no reference into it outlives `self`.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.len as usize) };
        self.entry.free();
    }
}

fn system_page() -> i64 {
    // SAFETY: a plain query of the C library.
    unsafe { libc::sysconf(libc::_SC_PAGESIZE) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FRAMES: u64 = 4;
    const LEN: u64 = FRAMES * FRAME as u64;

    fn map() -> Map {
        let file = crate::arena::trust::memfd().expect("a memory file");
        file.set_len(LEN).expect("some frames");
        Map::new(file, LEN).expect("a mapping")
    }

    fn bytes(map: &Map, offset: u64, len: usize) -> Vec<u8> {
        let mut out = vec![0xff];
        map.copy_out(offset, len, &mut out);
        out.split_off(1)
    }

    #[test]
    fn bytes_and_cells_read_back_to_the_very_end() {
        let map = map();
        map.copy_in(LEN - 8, &[1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(bytes(&map, LEN - 8, 8), [1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(map.view::<W64>(LEN - 8).get(), 0x0807_0605_0403_0201);
        assert_eq!(map.words(LEN - 8, 2)[1].get(), 0x0807_0605);
        map.words(LEN, 0);
    }

    #[test]
    fn ranges_outside_panic_and_touch_nothing() {
        let map = map();
        let outside = |body: &dyn Fn()| {
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(body))
                .expect_err("it is outside");
        };
        for offset in [LEN, LEN - 3, u64::MAX, u64::MAX - 3] {
            outside(&|| map.copy_in(offset, &[1; 4]));
            outside(&|| map.copy_out(offset, 4, &mut Vec::new()));
            outside(&|| map.zero(offset, 4));
            outside(&|| map.copy_within(0, offset, 4));
            outside(&|| map.copy_within(offset, 0, 4));
            outside(&|| _ = map.words(offset, 1));
            outside(&|| _ = map.view::<W64>(offset));
        }
        outside(&|| map.punch(LEN, FRAME as u64));
        outside(&|| _ = map.words(0, usize::MAX / 8));
        map.prefetch(u64::MAX);
        assert_eq!(bytes(&map, 0, LEN as usize), vec![0; LEN as usize]);
    }

    #[test]
    fn misaligned_cells_panic() {
        let map = map();
        for offset in [1, 2, 3, 5] {
            let words = || _ = map.words(offset, 1);
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(words))
                .expect_err("it is misaligned");
        }
        let view = || _ = map.view::<W64>(4);
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(view)).expect_err("it is misaligned");
    }

    #[test]
    fn punched_frames_read_as_zeros_and_cost_nothing() {
        use std::os::unix::fs::MetadataExt;
        let map = map();
        let blocks = || map.file().metadata().expect("it is open").blocks() * 512;
        map.populate(0, LEN).expect("room");
        assert_eq!(blocks(), LEN);
        map.copy_in(0, &vec![7; LEN as usize]);
        map.punch(FRAME as u64, 2 * FRAME as u64);
        assert_eq!(blocks(), LEN / 2);
        assert_eq!(bytes(&map, FRAME as u64, 2 * FRAME), vec![0; 2 * FRAME]);
        assert_eq!(bytes(&map, 3 * FRAME as u64, FRAME), vec![7; FRAME]);
    }

    #[test]
    fn copies_within_may_overlap() {
        let map = map();
        map.copy_in(0, &[1, 2, 3, 4, 5]);
        map.copy_within(0, 2, 5);
        assert_eq!(bytes(&map, 0, 7), [1, 2, 1, 2, 3, 4, 5]);
    }
}
