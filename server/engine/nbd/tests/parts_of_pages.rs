//! Parts of large blocks: neighbouring reads are of one block kept decompressed, and what anybody changed is in them.

mod support;

use std::sync::Arc;

use support::{OID, pool_of, serve};
use tmem_core::{Codec, Pool};
use tmem_nbd::protocol::command;
use tmem_nbd::{Backend, PoolExport, PoolExportSettings};

const BLOCK: u64 = 256 << 10;
const SIZE: u64 = 4 * BLOCK;
/// Where the part lies that is read again and again.
const AT: u64 = BLOCK + 8192;
const PART: u32 = 4096;

fn export(pool: &Pool) -> Arc<PoolExport> {
    let settings = PoolExportSettings {
        multi_conn: true,
        ..PoolExportSettings::default()
    };
    Arc::new(PoolExport::new(pool.clone(), OID, SIZE, settings).unwrap())
}

fn block(byte: u8) -> Vec<u8> {
    (0..BLOCK).map(|i| byte ^ (i / 900) as u8).collect()
}

fn part(byte: u8) -> Vec<u8> {
    block(byte)[8192..8192 + PART as usize].to_vec()
}

/// After each way in which others change a block, a connection that has it decompressed reads what is there now.
#[test]
fn a_change_by_anybody_is_in_the_next_read() {
    let pool = pool_of(32 << 20, Codec::Zstd { level: 3 }, BLOCK as u32);
    let export = export(&pool);
    let served = serve(export.clone());
    let (mut reader, mut writer) = (served.connect(true), served.connect(true));
    let mut see = |writer: &mut support::Wire, expected: &[u8], what: &str| {
        assert!(reader.read(AT, PART).unwrap() == expected, "after {what}");
        writer.write(BLOCK, &block(1)).unwrap();
        for _ in 0..2 {
            assert!(
                reader.read(AT, PART).unwrap() == part(1),
                "after {what}, written anew"
            );
        }
    };
    let zeros = vec![0; PART as usize];
    see(&mut writer, &zeros, "nothing");
    writer.write(BLOCK, &block(2)).unwrap();
    see(&mut writer, &part(2), "a write of the block");
    writer.write(AT, &[7; PART as usize]).unwrap();
    see(&mut writer, &[7; PART as usize], "a write of the part");
    assert_eq!(writer.run(command::TRIM, 0, BLOCK, BLOCK as u32), None);
    see(&mut writer, &zeros, "a trim of the block");
    assert_eq!(writer.run(command::TRIM, 0, AT, PART), None);
    see(&mut writer, &zeros, "a trim of the part");
    assert_eq!(writer.run(command::WRITE_ZEROES, 0, AT, PART), None);
    see(&mut writer, &zeros, "zeros");
    pool.put_range(&OID, 1, &block(3)).unwrap();
    see(&mut writer, &part(3), "a put past the export");
    pool.flush(&OID, &[1]).unwrap();
    see(&mut writer, &zeros, "a flush past the export");
    pool.flush_object(&OID).unwrap();
    see(&mut writer, &zeros, "a flush of the object");
    export.resize(AT).unwrap();
    export.resize(SIZE).unwrap();
    see(&mut writer, &zeros, "a resize to before the part and back");
}

/// A connection sees its own writes, whichever part of the block it had.
#[test]
fn a_connections_own_changes_are_in_its_reads() {
    let pool = pool_of(32 << 20, Codec::Lz4 { acceleration: 1 }, BLOCK as u32);
    let served = serve(export(&pool));
    let mut wire = served.connect(true);
    let mut model = [block(1), block(2), block(3), block(4)].concat();
    wire.write(0, &model).unwrap();
    for step in 0..200u64 {
        let at = (step * 77_777 % (SIZE - 9000)) as usize;
        if step % 3 == 0 {
            model[at..at + 700].fill(step as u8);
            wire.write(at as u64, &model[at..at + 700]).unwrap();
        }
        let near = at.saturating_sub(5000);
        assert!(wire.read(near as u64, 8192).unwrap() == model[near..near + 8192]);
    }
}
