//! The pool table: named pools that outlive the process, one record each.
//!
//! A record is written under the admin lock and read without it: its uid is written last when it is made and never
//! given again, so a handle that remembers (slot, uid) can tell whether the pool is still its own.

use crate::arena::{Arena, POOL_LIVE as LIVE, PoolRecord, W64, pool_frames};
use crate::error::{Error, Result};
use crate::types::{AllocatorKind, Codec, Kind, MAX_NAME, MAX_POOLS, PoolSettings};

const DESTROYING: u32 = 2;

/// Which pool a handle means.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PoolId {
    pub slot: u32,
    pub uid: u64,
}

/// What of a pool's record an operation needs, read once under the shard lock.
#[derive(Clone, Copy, Debug)]
pub struct PoolView {
    pub slot: u32,
    pub persistent: bool,
    pub zbud: bool,
    pub exclusive: bool,
    pub frozen: bool,
    pub page_size: u32,
    pub max_zpage: u32,
}

impl PoolView {
    /// None once the pool is being destroyed.
    #[inline]
    pub fn read(arena: &Arena, id: PoolId) -> Option<PoolView> {
        let record = arena.pool(id.slot);
        if record.uid.get() != id.uid || record.state.get() != LIVE {
            return None;
        }
        let persistent = record.kind.get() == Kind::Persistent as u32;
        let keeps = persistent || record.shared.get() != 0 || record.inclusive.get() != 0;
        Some(PoolView {
            slot: id.slot,
            persistent,
            zbud: record.allocator.get() == AllocatorKind::Zbud as u32,
            exclusive: !keeps,
            frozen: record.frozen.get() != 0,
            page_size: record.page_size.get(),
            max_zpage: record.max_zpage.get(),
        })
    }
}

/// Why there is no such pool: none of that name, or no arena to look in.
pub fn unknown(arena: &Arena, name: &str) -> Error {
    let missing = || Error::UnknownPool(name.to_owned());
    arena.whole().map_or_else(|broken| broken, |()| missing())
}

/// A pool's record is not what we wrote.
pub fn damaged(arena: &Arena, slot: u32) -> Error {
    Error::Arena {
        path: arena.name(),
        why: format!("damaged: the record of pool {slot} is invalid"),
    }
}

/// Whether a slot of the table holds a pool whose pages count; for rebuilding and for checking.
pub fn is_live(arena: &Arena, slot: u32) -> bool {
    slot < arena.pool_slots() && {
        let record = arena.pool(slot);
        record.uid.get() != 0 && matches!(record.state.get(), LIVE | DESTROYING)
    }
}

/// Whether the pages of a pool may be evicted.
pub fn is_ephemeral(arena: &Arena, slot: u32) -> bool {
    arena.pool(slot).kind.get() == Kind::Ephemeral as u32
}

/// Frames committed for ephemeral pools: what could be given up at most.
pub fn ephemeral_frames(arena: &Arena) -> u64 {
    let ephemeral = |slot: &u32| is_live(arena, *slot) && is_ephemeral(arena, *slot);
    (0..arena.pool_slots())
        .filter(ephemeral)
        .map(|slot| pool_frames(arena, slot))
        .sum()
}

/// The sum of the reserves of all pools but one.
pub fn reserves(arena: &Arena, except: Option<u32>) -> u64 {
    let others = (0..arena.pool_slots()).filter(|&slot| Some(slot) != except);
    let live = others.filter(|&slot| is_live(arena, slot));
    live.map(|slot| arena.pool(slot).reserve.get())
        .fold(0, u64::saturating_add)
}

/// Whether a pool is being destroyed by somebody, and its pages are to go.
pub fn is_destroying(arena: &Arena, id: PoolId) -> bool {
    let record = arena.pool(id.slot);
    record.uid.get() == id.uid && record.state.get() == DESTROYING
}

/// Whether a pool keeps its compressed pages in zbud.
pub fn uses_zbud(arena: &Arena, slot: u32) -> bool {
    arena.pool(slot).allocator.get() == AllocatorKind::Zbud as u32
}

/// Every pool: slot, uid, name, settings; those being destroyed on request.
pub fn list(arena: &Arena, destroying: bool) -> Vec<(PoolId, String)> {
    let wanted = if destroying { DESTROYING } else { LIVE };
    let slots = (0..arena.pool_slots())
        .filter(|&slot| is_live(arena, slot) && arena.pool(slot).state.get() == wanted);
    slots
        .map(|slot| {
            let record = arena.pool(slot);
            (
                PoolId {
                    slot,
                    uid: record.uid.get(),
                },
                text(&record.name, record.name_len.get()),
            )
        })
        .collect()
}

/// The pool of a name.
pub fn find(arena: &Arena, name: &str) -> Option<PoolId> {
    list(arena, false)
        .into_iter()
        .find(|(_, n)| n == name)
        .map(|(id, _)| id)
}

/// Make a pool. The admin lock is held, and no pool has the name.
pub fn create(arena: &Arena, name: &str, settings: &PoolSettings) -> Result<PoolId> {
    if name.is_empty() || name.len() > MAX_NAME {
        return Err(Error::Invalid(format!(
            "pool name {name:?} is not 1 to {MAX_NAME} bytes long"
        )));
    }
    let slot = free_slot(arena)?;
    let record = arena.pool(slot);
    let sb = arena.superblock();
    sb.last_uid.add(1);
    put_text(&record.name, name);
    record.name_len.set(name.len() as u32);
    put_text(&record.owner, &settings.owner);
    record.owner_len.set(settings.owner.len() as u32);
    record.kind.set(settings.kind as u32);
    record.allocator.set(settings.allocator as u32);
    let (codec, parameter) = encode_codec(settings.codec);
    record.codec.set(codec);
    record.codec_parameter.set(parameter);
    record.page_size.set(settings.page_size);
    record.quota.set(settings.quota);
    record.weight.set(settings.weight);
    record.shared.set(settings.shared.into());
    record.inclusive.set(settings.inclusive.into());
    record.max_zpage.set(settings.max_zpage);
    record.frozen.set(0);
    record.reserve.set(0);
    record.state.set(LIVE);
    let uid = sb.last_uid.get();
    record.uid.publish(uid);
    Ok(PoolId { slot, uid })
}

fn free_slot(arena: &Arena) -> Result<u32> {
    let committed = arena.pool_slots();
    if let Some(slot) = (0..committed).find(|&slot| arena.pool(slot).uid.get() == 0) {
        return Ok(slot);
    }
    if committed as usize >= MAX_POOLS {
        return Err(Error::Exhausted(format!(
            "the arena already has {MAX_POOLS} pools, the maximum"
        )));
    }
    let full = |_| Error::Exhausted("there is no memory for another pool".into());
    arena.grow_pools().map_err(full)?;
    Ok(committed)
}

/// From now on no operation knows the pool, and its name is free; its pages are still to be purged.
pub fn begin_destroy(arena: &Arena, id: PoolId) -> bool {
    let record = arena.pool(id.slot);
    let live = record.uid.get() == id.uid && record.state.get() == LIVE;
    if live {
        record.state.publish(DESTROYING);
    }
    live
}

/// Its pages are purged: the slot is free.
pub fn end_destroy(arena: &Arena, id: PoolId) {
    let record = arena.pool(id.slot);
    if record.uid.get() == id.uid {
        record.uid.publish(0);
        arena.superblock().reserves.publish(reserves(arena, None));
    }
}

/// A pool's settings, as they are now.
pub fn settings(arena: &Arena, slot: u32) -> PoolSettings {
    let record = arena.pool(slot);
    let kind = if record.kind.get() == Kind::Persistent as u32 {
        Kind::Persistent
    } else {
        Kind::Ephemeral
    };
    let zbud = record.allocator.get() == AllocatorKind::Zbud as u32;
    PoolSettings {
        kind,
        codec: decode_codec(record.codec.get(), record.codec_parameter.get()),
        allocator: if zbud {
            AllocatorKind::Zbud
        } else {
            AllocatorKind::Zsmalloc
        },
        page_size: record.page_size.get(),
        quota: record.quota.get(),
        weight: record.weight.get().max(1),
        shared: record.shared.get() != 0,
        inclusive: record.inclusive.get() != 0,
        max_zpage: record.max_zpage.get(),
        owner: text(&record.owner, record.owner_len.get()),
    }
}

/// Why a record cannot have been written by us; a damaged arena's may say anything.
pub fn fault(arena: &Arena, slot: u32) -> Option<Error> {
    let record = arena.pool(slot);
    let known = record.kind.get() <= 1
        && record.allocator.get() <= 1
        && record.codec.get() <= 3
        && record.name_len.get() as usize <= MAX_NAME
        && record.owner_len.get() as usize <= MAX_NAME
        && record.reserve.get() <= arena.superblock().memory.get()
        && settings(arena, slot).validate().is_ok();
    (!known).then(|| damaged(arena, slot))
}

fn encode_codec(codec: Codec) -> (u32, u32) {
    match codec {
        Codec::Lz4 { acceleration } => (0, acceleration),
        Codec::Zstd { level } => (1, level as u32),
        Codec::Raw => (2, 0),
        Codec::Lz4hc { level } => (3, level as u32),
    }
}

fn decode_codec(codec: u32, parameter: u32) -> Codec {
    match codec {
        0 => Codec::Lz4 {
            acceleration: parameter,
        },
        1 => Codec::Zstd {
            level: parameter as i32,
        },
        3 => Codec::Lz4hc {
            level: parameter as i32,
        },
        _ => Codec::Raw,
    }
}

fn text(cells: &[W64; 8], len: u32) -> String {
    let bytes: Vec<u8> = cells
        .iter()
        .flat_map(|cell| cell.get().to_le_bytes())
        .take(len as usize)
        .collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

fn put_text(cells: &[W64; 8], text: &str) {
    let mut bytes = [0; 64];
    bytes[..text.len()].copy_from_slice(text.as_bytes());
    for (cell, chunk) in cells.iter().zip(bytes.chunks_exact(8)) {
        cell.set(u64::from_le_bytes(chunk.try_into().expect("8")));
    }
}

/// The difference between what a pool is and what was asked for, in words.
pub fn difference(have: &PoolSettings, want: &PoolSettings) -> Option<String> {
    let mut differ = Vec::new();
    let mut compare = |what: &str, have: String, want: String| {
        if have != want {
            differ.push(format!("{what} is {have}, not {want}"));
        }
    };
    compare("kind", have.kind.name().into(), want.kind.name().into());
    compare("codec", have.codec.to_string(), want.codec.to_string());
    compare(
        "allocator",
        have.allocator.name().into(),
        want.allocator.name().into(),
    );
    compare(
        "page_size",
        have.page_size.to_string(),
        want.page_size.to_string(),
    );
    compare("quota", have.quota.to_string(), want.quota.to_string());
    compare("weight", have.weight.to_string(), want.weight.to_string());
    compare("shared", have.shared.to_string(), want.shared.to_string());
    compare(
        "inclusive",
        have.inclusive.to_string(),
        want.inclusive.to_string(),
    );
    compare(
        "max_zpage",
        have.max_zpage.to_string(),
        want.max_zpage.to_string(),
    );
    compare(
        "owner",
        format!("{:?}", have.owner),
        format!("{:?}", want.owner),
    );
    (!differ.is_empty()).then(|| differ.join("; "))
}

/// A pool's record.
pub fn record(arena: &Arena, id: PoolId) -> Option<&PoolRecord> {
    let record = arena.pool(id.slot);
    (record.uid.get() == id.uid && record.state.get() == LIVE).then_some(record)
}
