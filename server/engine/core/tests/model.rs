//! The store against a plain map: persistent pools equal it, ephemeral ones may only forget.

use std::collections::{HashMap, HashSet};

use proptest::prelude::*;
use tmem_core::{
    AllocatorKind, Codec, Compressor, Fetch, Form, Kind, Oid, Outcome, Pool, PoolSettings,
    ScanCursor, Store, StoreOptions, checksum,
};

#[derive(Clone, Debug)]
enum Op {
    Put {
        oid: u8,
        first: u32,
        fills: Vec<Fill>,
        packed: bool,
    },
    Get {
        oid: u8,
        index: u32,
        exclusive: bool,
    },
    Flush {
        oid: u8,
        index: u32,
    },
    FlushObject {
        oid: u8,
    },
    Take {
        oid: u8,
        index: u32,
        lz4: bool,
    },
    Scan {
        limit: usize,
    },
    Freeze(bool),
    Compact,
    Relinquish(u64),
}

#[derive(Clone, Copy, Debug)]
enum Fill {
    Same(u8),
    Text(u32),
    Noise(u64),
}

fn page(fill: Fill, size: usize) -> Vec<u8> {
    match fill {
        Fill::Same(byte) => vec![byte; size],
        Fill::Text(seed) => (0..size)
            .map(|i| ((i as u32 / 7).wrapping_mul(seed | 1) >> 9) as u8 & 0x3f)
            .collect(),
        Fill::Noise(seed) => {
            let mut x = seed | 1;
            let mut word = || {
                x ^= x << 13;
                x ^= x >> 7;
                x ^= x << 17;
                x
            };
            (0..size / 8).flat_map(|_| word().to_le_bytes()).collect()
        }
    }
}

fn fill() -> impl Strategy<Value = Fill> {
    prop_oneof![
        any::<u8>().prop_map(Fill::Same),
        any::<u32>().prop_map(Fill::Text),
        any::<u32>().prop_map(Fill::Text),
        any::<u64>().prop_map(Fill::Noise),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    let index = || prop_oneof![0..200u32, 4_294_967_200..=u32::MAX];
    prop_oneof![
        6 => (0..4u8, prop_oneof![0..200u32, 4_294_967_000..4_294_967_200u32], prop::collection::vec(fill(), 1..90), any::<bool>())
            .prop_map(|(oid, first, fills, packed)| Op::Put { oid, first, fills, packed }),
        4 => (0..4u8, index(), prop::bool::weighted(0.2)).prop_map(|(oid, index, exclusive)| Op::Get { oid, index, exclusive }),
        2 => (0..4u8, index()).prop_map(|(oid, index)| Op::Flush { oid, index }),
        1 => (0..4u8).prop_map(|oid| Op::FlushObject { oid }),
        2 => (0..4u8, index(), any::<bool>()).prop_map(|(oid, index, lz4)| Op::Take { oid, index, lz4 }),
        1 => (1..300usize).prop_map(|limit| Op::Scan { limit }),
        1 => any::<bool>().prop_map(Op::Freeze),
        1 => Just(Op::Compact),
        1 => (0..4u64 << 20).prop_map(Op::Relinquish),
    ]
}

fn settings() -> impl Strategy<Value = PoolSettings> {
    let kinds = prop_oneof![Just(Kind::Persistent), Just(Kind::Ephemeral)];
    let allocators = prop_oneof![Just(AllocatorKind::Zsmalloc), Just(AllocatorKind::Zbud)];
    let codecs = prop_oneof![
        Just(Codec::Lz4 { acceleration: 1 }),
        Just(Codec::Lz4hc { level: 4 }),
        Just(Codec::Zstd { level: 1 }),
        Just(Codec::Raw)
    ];
    let sizes = prop_oneof![4 => Just(4096u32), 1 => Just(8192), 1 => Just(16384), 1 => Just(65536), 1 => Just(262144)];
    let quotas = prop_oneof![3 => Just(0u64), 1 => Just(256 << 10)];
    (
        kinds,
        allocators,
        codecs,
        sizes,
        quotas,
        any::<bool>(),
        prop_oneof![2 => Just(0u32), 1 => Just(3000)],
    )
        .prop_map(
            |(kind, allocator, codec, page_size, quota, inclusive, max_zpage)| PoolSettings {
                allocator,
                codec,
                page_size,
                quota,
                max_zpage,
                inclusive: inclusive && kind == Kind::Ephemeral,
                ..PoolSettings::new(kind)
            },
        )
}

struct Model {
    store: Store,
    pool: Pool,
    settings: PoolSettings,
    pages: HashMap<(u8, u32), Vec<u8>>,
    frozen: bool,
}

fn oid(n: u8) -> Oid {
    Oid([n; 24])
}

impl Model {
    fn apply(&mut self, op: Op) {
        let size = self.settings.page_size as usize;
        match op {
            Op::Put {
                oid: o,
                first,
                fills,
                packed,
            } => {
                let data: Vec<u8> = fills.iter().flat_map(|&f| page(f, size)).collect();
                let outcomes = if packed {
                    self.put_packed(o, first, &data)
                } else {
                    self.pool.put_range(&oid(o), first, &data).unwrap()
                };
                for (i, outcome) in outcomes.into_iter().enumerate() {
                    let key = (o, first + i as u32);
                    let old = self.pages.remove(&key);
                    match outcome {
                        Outcome::Stored { replaced } => {
                            assert!(!self.frozen);
                            assert!(!replaced || old.is_some(), "replaced what was never there");
                            self.pages
                                .insert(key, data[i * size..(i + 1) * size].to_vec());
                        }
                        Outcome::Refused { old_flushed, .. } => {
                            assert!(!old_flushed || old.is_some())
                        }
                    }
                }
            }
            Op::Get {
                oid: o,
                index,
                exclusive,
            } => self.get(o, index, exclusive),
            Op::Flush { oid: o, index } => {
                let found = self.pool.flush(&oid(o), &[index]).unwrap();
                let had = self.pages.remove(&(o, index)).is_some();
                assert!(
                    found == u64::from(had) || self.settings.kind == Kind::Ephemeral && found == 0
                );
                assert_eq!(
                    self.pool.flush(&oid(o), &[index]).unwrap(),
                    0,
                    "flush is idempotent"
                );
            }
            Op::FlushObject { oid: o } => {
                let found = self.pool.flush_object(&oid(o)).unwrap();
                let had = self.pages.keys().filter(|(oid, _)| *oid == o).count() as u64;
                assert!(found == had || self.settings.kind == Kind::Ephemeral && found < had);
                self.pages.retain(|(oid, _), _| *oid != o);
            }
            Op::Take { oid: o, index, lz4 } => self.take(o, index, lz4),
            Op::Scan { limit } => self.scan(limit),
            Op::Freeze(freeze) => {
                self.frozen = freeze;
                if freeze {
                    self.pool.freeze().unwrap()
                } else {
                    self.pool.thaw().unwrap()
                }
            }
            Op::Compact => drop(self.store.compact().unwrap()),
            Op::Relinquish(bytes) => drop(self.store.relinquish(bytes).unwrap()),
        }
    }

    fn put_packed(&self, o: u8, first: u32, data: &[u8]) -> Vec<Outcome> {
        let mut compressor = Compressor::default();
        let pages = data.chunks(self.settings.page_size as usize);
        let pack = |page: &[u8]| {
            let mut out = vec![0; page.len() - 1];
            let codec = Codec::Lz4 { acceleration: 1 };
            match compressor.compress(codec, page, &mut out) {
                Some((_, len)) => out[..len].to_vec(),
                None => page.to_vec(),
            }
        };
        let blocks: Vec<Vec<u8>> = pages.map(pack).collect();
        let indices = first..=u32::MAX;
        let batch: Vec<_> = indices.zip(blocks.iter().map(Vec::as_slice)).collect();
        self.pool.put_packed(&oid(o), &batch).unwrap()
    }

    /// A fetch, and the flush of what it found by its stamp: a get that takes the page out.
    fn take(&mut self, o: u8, index: u32, lz4: bool) {
        let fetched = self.pool.fetch(&oid(o), &[index], lz4).unwrap();
        let (found, size) = (fetched.pages[0], self.settings.page_size as usize);
        if found.fetch == Fetch::Hit {
            let mut page = fetched.bytes[found.start..found.start + found.len].to_vec();
            if found.len != size {
                assert!(lz4, "a block nobody asked for");
                let block = std::mem::replace(&mut page, vec![0; size]);
                let mut compressor = Compressor::default();
                assert!(compressor.decode(Form::Lz4, &block, &mut page).is_ok());
            }
            assert_eq!(found.checksum, checksum(&page));
            assert_eq!(self.pages.get(&(o, index)), Some(&page));
            let stamp = |seq| self.pool.flush_if(&oid(o), &[(index, seq)]).unwrap();
            assert_eq!(stamp(found.seq.wrapping_sub(1)), 0, "another page's stamp");
            assert_eq!(
                stamp(found.seq),
                u64::from(!self.settings.exclusive_get()),
                "only a private ephemeral pool gives its pages up at once"
            );
        } else {
            assert!(self.settings.kind == Kind::Ephemeral || !self.pages.contains_key(&(o, index)));
        }
        self.pages.remove(&(o, index));
    }

    fn scan(&self, limit: usize) {
        let (mut cursor, mut keys) = (Some(ScanCursor::START), Vec::new());
        while let Some(at) = cursor {
            let at = ScanCursor::from_bytes(&at.to_bytes()).unwrap();
            let (clusters, next) = self.pool.scan(at, limit).unwrap();
            let given: usize = clusters.iter().map(|cluster| cluster.pages.len()).sum();
            assert!(given < limit + 64);
            for cluster in clusters {
                keys.extend(cluster.pages.iter().map(|(i, _)| (cluster.oid.0[0], *i)));
            }
            cursor = next;
        }
        let count = keys.len();
        let keys: HashSet<_> = keys.into_iter().collect();
        assert_eq!(keys.len(), count, "a key was given twice");
        assert!(keys.iter().all(|key| self.pages.contains_key(key)));
        assert!(self.settings.kind == Kind::Ephemeral || count == self.pages.len());
    }

    fn get(&mut self, o: u8, index: u32, exclusive: bool) {
        let mut bytes = vec![0; self.settings.page_size as usize];
        let fetched = self
            .pool
            .get(&oid(o), &[index], &mut [&mut bytes], exclusive)
            .unwrap()[0];
        match (fetched, self.pages.get(&(o, index))) {
            (Fetch::Hit, Some(page)) => assert_eq!(&bytes, page),
            (Fetch::Hit, None) => panic!("a hit on a page that is gone"),
            (Fetch::Miss, Some(_)) => assert_eq!(
                self.settings.kind,
                Kind::Ephemeral,
                "a persistent page was lost"
            ),
            (Fetch::Miss, None) => {}
            (Fetch::Corrupt, _) => panic!("corrupt"),
        }
        if exclusive || self.settings.exclusive_get() || fetched == Fetch::Miss {
            self.pages.remove(&(o, index));
        }
    }

    fn finish(&mut self) {
        assert_eq!(self.store.check().unwrap(), Vec::<String>::new());
        let stats = self.store.stats().unwrap();
        assert!(stats.get("used_bytes") <= stats.get("memory_bytes"));
        let keys: Vec<_> = self.pages.keys().copied().collect();
        keys.into_iter()
            .for_each(|(o, index)| self.get(o, index, false));
        self.pool.destroy().unwrap();
        assert_eq!(self.store.check().unwrap(), Vec::<String>::new());
        assert_eq!(self.store.stats().unwrap().get("pages"), Some(0));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn every_operation_equals_a_dict(settings in settings(), shards in prop_oneof![Just(1u32), Just(4)], memory in prop_oneof![Just(2u64 << 20), Just(16 << 20)], ops in prop::collection::vec(op(), 1..60)) {
        let store = Store::open(&StoreOptions { memory, shards: Some(shards), ..StoreOptions::default() }).unwrap();
        let pool = store.pool("model", &settings).unwrap();
        let mut model = Model { store, pool, settings, pages: HashMap::new(), frozen: false };
        ops.into_iter().for_each(|op| model.apply(op));
        model.finish();
    }
}
