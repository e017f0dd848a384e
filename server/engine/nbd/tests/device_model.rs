//! Any commands of any alignment, over several connections that speak differently, against a plain buffer.

mod support;

use std::sync::Arc;

use proptest::prelude::*;
use support::{OID, pool_of, serve};
use tmem_core::Codec;
use tmem_nbd::protocol::{allocation, command, flag};
use tmem_nbd::{PoolExport, PoolExportSettings};

/// Page sizes, and how they compress.
const SHAPES: [(u64, Codec); 5] = [
    (4096, Codec::Lz4 { acceleration: 1 }),
    (8192, Codec::Zstd { level: 1 }),
    (16384, Codec::Lz4hc { level: 4 }),
    (65536, Codec::Lz4 { acceleration: 1 }),
    (262144, Codec::Zstd { level: 1 }),
];

/// Bytes of a command, at most.
const MOST: u64 = 5 << 20;

/// No multiple of a page, more than a cluster, and more than the server asks an export for at once.
fn size_of(page: u64) -> u64 {
    (page * 75).max(700 << 10) + 1234
}

#[derive(Clone, Debug)]
enum Step {
    Read { df: bool },
    Write { seed: u8 },
    Trim,
    Zero { no_hole: bool },
    Status { one: bool },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => any::<bool>().prop_map(|df| Step::Read { df }),
        4 => any::<u8>().prop_map(|seed| Step::Write { seed }),
        1 => Just(Step::Trim),
        1 => any::<bool>().prop_map(|no_hole| Step::Zero { no_hole }),
        1 => any::<bool>().prop_map(|one| Step::Status { one }),
    ]
}

/// Offset and length, often at the edges of pages and clusters.
fn span(page: u64) -> impl Strategy<Value = (u64, u32)> {
    let size = size_of(page);
    let edge = prop_oneof![Just(0), Just(1), Just(512), Just(4095), Just(page - 1)];
    let offset = prop_oneof![
        0..size,
        (0..size / page, edge).prop_map(move |(number, edge)| number * page + edge),
    ];
    let length = prop_oneof![
        1..9000u32,
        1..size.min(MOST) as u32,
        (1..70u32).prop_map(move |pages| (pages * page as u32).min(MOST as u32)),
    ];
    (offset, length).prop_map(move |(offset, length)| {
        let offset = offset.min(size - 1);
        (offset, length.min((size - offset) as u32))
    })
}

type Steps = Vec<(Step, (u64, u32), usize)>;

fn any_run() -> impl Strategy<Value = (u64, Codec, Steps)> {
    prop::sample::select(&SHAPES).prop_flat_map(|(page, codec)| {
        let steps = prop::collection::vec((step(), span(page), 0..3usize), 1..40);
        (Just(page), Just(codec), steps)
    })
}

/// Bytes that are neither all alike nor hopeless to compress.
fn bytes(seed: u8, length: u32) -> Vec<u8> {
    (0..length)
        .map(|i| seed.wrapping_add((i / 7) as u8) ^ (i % 3) as u8)
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn every_command_equals_a_buffer((page, codec, steps) in any_run()) {
        let size = size_of(page);
        let settings = PoolExportSettings { multi_conn: true, ..PoolExportSettings::default() };
        let pool = pool_of(64 << 20, codec, page as u32);
        let served = serve(Arc::new(PoolExport::new(pool.clone(), OID, size, settings).unwrap()));
        let mut wires = [served.connect(true), served.connect(false), served.connect(true)];
        let mut model = vec![0u8; size as usize];
        for (step, (offset, length), which) in steps {
            let wire = &mut wires[which];
            let there = offset as usize..offset as usize + length as usize;
            match step {
                Step::Read { df } => {
                    let flags = if df && wire.structured { flag::DF } else { 0 };
                    let (data, chunks) = wire.read_with(flags, offset, length);
                    prop_assert!(data.unwrap() == model[there], "{length} bytes at {offset} differ");
                    prop_assert!(flags == 0 || chunks == 1, "what must not be cut came in {chunks} chunks");
                }
                Step::Write { seed } => {
                    model[there].copy_from_slice(&bytes(seed, length));
                    wire.write(offset, &bytes(seed, length)).unwrap();
                }
                Step::Trim => {
                    model[there].fill(0);
                    prop_assert_eq!(wire.run(command::TRIM, 0, offset, length), None);
                }
                Step::Zero { no_hole } => {
                    model[there].fill(0);
                    let flags = if no_hole { flag::NO_HOLE } else { flag::FAST_ZERO };
                    prop_assert_eq!(wire.run(command::WRITE_ZEROES, flags, offset, length), None);
                }
                Step::Status { one } if wire.structured => {
                    let flags = if one { flag::REQ_ONE } else { 0 };
                    wire.ask(command::BLOCK_STATUS, flags, offset, length, &[]);
                    let extents = wire.answer(0).extents;
                    prop_assert!(!one || extents.len() == 1);
                    let mut at = offset as usize;
                    for (length, flags) in &extents {
                        let end = at + *length as usize;
                        let zero = flags & allocation::ZERO != 0;
                        prop_assert!(!zero || model[at..end].iter().all(|byte| *byte == 0));
                        at = end;
                    }
                    prop_assert!(at <= there.end && (one || at == there.end));
                }
                Step::Status { .. } => {}
            }
        }
        for wire in &mut wires {
            prop_assert!(wire.read(0, size as u32).unwrap() == model);
        }
        prop_assert_eq!(wires[0].run(command::TRIM, 0, 0, size as u32), None);
        let held = pool.has(&OID, 0, (size / page) as u32 + 1).unwrap();
        prop_assert!(!held.contains(&true), "what is trimmed whole is gone");
    }
}
