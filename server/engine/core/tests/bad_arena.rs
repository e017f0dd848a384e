//! Arenas that are no good, and file systems with no room: a clear error or a refusal, never a signal, and nothing lost.

mod support;

use std::fs::{File, Permissions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use support::{
    Fill, Scratch, assert_sound, get, inclusive, page, persistent, put, stat, stored, version,
};
use tmem_core::{Codec, Error, Outcome, PoolSettings, Reason, Store, StoreOptions};

/// Why an arena was refused.
#[track_caller]
fn refusal(path: &Path) -> String {
    match Store::attach(path, false) {
        Err(Error::Arena { why, .. }) => why,
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("it was attached"),
    }
}

/// An arena with one page, closed.
fn arena(name: &str) -> Scratch {
    let file = Scratch::new(name);
    let store = Store::open(&file.options(4 << 20, 1)).unwrap();
    put(
        &store.pool("p", &persistent()).unwrap(),
        1,
        1,
        &page(Fill::Text, 1, 1, 4096),
    );
    file
}

fn overwrite(file: &Scratch, at: u64, bytes: &[u8]) {
    File::options()
        .write(true)
        .open(&file.0)
        .unwrap()
        .write_all_at(bytes, at)
        .unwrap();
}

// --- files ---

#[test]
fn a_file_that_is_no_arena_is_refused_and_left_as_it_is() {
    let file = Scratch::new("random");
    for bytes in [
        vec![],
        vec![7; 100],
        vec![7; 100_000],
        std::fs::read("/proc/self/exe").unwrap(),
    ] {
        std::fs::write(&file.0, &bytes).unwrap();
        std::fs::set_permissions(&file.0, Permissions::from_mode(0o600)).unwrap();
        assert!(refusal(&file.0).contains("arena"), "{}", refusal(&file.0));
        assert!(matches!(
            Store::open(&file.options(4 << 20, 1)),
            Err(Error::Arena { .. })
        ));
        assert_eq!(std::fs::read(&file.0).unwrap(), bytes);
    }
}

#[test]
fn another_layout_version_is_refused_with_both_numbers() {
    let file = arena("version");
    overwrite(&file, 8, &77u32.to_le_bytes());
    let why = refusal(&file.0);
    assert!(why.contains("77") && why.contains("reads version"), "{why}");
}

#[test]
fn a_damaged_geometry_is_refused() {
    for at in (16..40).step_by(4) {
        let file = arena("geometry");
        overwrite(&file, at, &[0x5a; 4]);
        assert!(
            refusal(&file.0).contains("checksum"),
            "byte {at}: {}",
            refusal(&file.0)
        );
    }
}

#[test]
fn an_arena_of_another_length_is_refused() {
    for cut in [-1i64, -4096, 4096] {
        let file = arena("length");
        let open = File::options().write(true).open(&file.0).unwrap();
        let len = open.metadata().unwrap().len();
        open.set_len(len.wrapping_add_signed(cut)).unwrap();
        assert!(
            refusal(&file.0).contains("should be"),
            "{}",
            refusal(&file.0)
        );
    }
}

#[test]
fn a_memory_limit_that_cannot_be_is_refused() {
    for memory in [0u64, 1 << 50, u64::MAX] {
        let file = arena("limit");
        overwrite(&file, 40, &memory.to_le_bytes());
        assert!(refusal(&file.0).contains("limit"), "{}", refusal(&file.0));
    }
}

#[test]
fn a_missing_arena_and_a_directory_are_errors_of_the_system() {
    for path in ["/dev/shm/tmem-test-there-is-none", "/dev/shm"] {
        assert!(
            matches!(Store::attach(Path::new(path), false), Err(Error::Io { .. })),
            "{path}"
        );
    }
    let nowhere = StoreOptions {
        arena: Some(PathBuf::from("/nonexistent/arena")),
        ..StoreOptions::default()
    };
    assert!(matches!(Store::open(&nowhere), Err(Error::Io { .. })));
}

/// Root may write anything, so there the file is read-only in earnest: on a mount that is.
#[test]
fn a_read_only_arena_is_an_error_and_keeps_its_pages() {
    let file = arena("read-only");
    std::fs::set_permissions(&file.0, Permissions::from_mode(0o400)).unwrap();
    match Store::attach(&file.0, false) {
        Err(Error::Io { source, .. }) => {
            assert_eq!(source.kind(), std::io::ErrorKind::PermissionDenied)
        }
        Err(other) => panic!("{other}"),
        Ok(_) => println!("skipped: this user may write any file"),
    }
    let program = format!(
        "mount --bind -o ro {0} {0} && mount -o remount,bind,ro {0} && exec \"$0\" \"$@\"",
        file.0.display()
    );
    in_a_mount_namespace(&program, "read_only_child", &file.0);
    std::fs::set_permissions(&file.0, Permissions::from_mode(0o600)).unwrap();
    let store = Store::attach(&file.0, false).unwrap();
    assert_eq!(
        version(&store.find_pool("p").unwrap().unwrap(), 1, 1, 1),
        Some(1)
    );
}

#[test]
fn read_only_child() {
    let Ok(path) = std::env::var(CHILD) else {
        return;
    };
    match Store::attach(Path::new(&path), false) {
        Err(Error::Io { source, .. }) => {
            assert_eq!(source.kind(), std::io::ErrorKind::ReadOnlyFilesystem)
        }
        other => panic!("{:?}", other.err()),
    }
}

// --- doors ---

fn allow(file: &Scratch, mode: u32) {
    std::fs::set_permissions(&file.0, Permissions::from_mode(mode)).unwrap();
}

#[test]
fn a_file_that_lets_others_in_is_refused_with_what_mends_it() {
    let file = arena("mode");
    for mode in [0o620, 0o602, 0o604, 0o640, 0o666, 0o777, 0o601] {
        allow(&file, mode);
        for why in [refusal(&file.0), opening(&file)] {
            assert!(
                why.contains(&format!("{mode:03o}")) && why.contains("chmod 600"),
                "{why}"
            );
        }
    }
    allow(&file, 0o600);
    Store::attach(&file.0, false).unwrap();
}

/// Why `open` refused it.
#[track_caller]
fn opening(file: &Scratch) -> String {
    match Store::open(&file.options(4 << 20, 1)) {
        Err(Error::Arena { why, .. }) => why,
        other => panic!("{:?}", other.err()),
    }
}

#[test]
fn a_link_to_an_arena_is_refused() {
    let (file, link) = (arena("linked"), Scratch::new("link"));
    std::os::unix::fs::symlink(&file.0, &link.0).unwrap();
    assert!(refusal(&link.0).contains("symbolic link"));
    assert!(opening(&link).contains("symbolic link"));
    std::fs::remove_file(&link.0).unwrap();
    std::fs::hard_link(&file.0, &link.0).unwrap();
    for file in [&file, &link] {
        assert!(refusal(&file.0).contains("2 names"), "{}", refusal(&file.0));
    }
    std::fs::remove_file(&link.0).unwrap();
    Store::attach(&file.0, false).unwrap();
}

#[test]
fn what_is_no_file_is_refused_and_not_waited_for() {
    let file = Scratch::new("fifo");
    let made = Command::new("mkfifo").arg("-m600").arg(&file.0).status();
    assert!(made.is_ok_and(|made| made.success()));
    assert!(refusal(&file.0).contains("not a regular file"));
}

/// Whoever made the file first would own every page.
#[test]
fn a_file_or_a_folder_of_another_user_is_refused() {
    let (file, folder) = (arena("owner"), Scratch::new("folder"));
    std::fs::create_dir(&folder.0).unwrap();
    let inside = Scratch(folder.0.join("arena"));
    if let Err(e) = std::os::unix::fs::chown(&file.0, Some(12345), None) {
        return println!("skipped: only root gives files away ({e})");
    }
    for why in [refusal(&file.0), opening(&file)] {
        assert!(why.contains("belongs to user 12345"), "{why}");
    }
    std::os::unix::fs::chown(&folder.0, Some(12345), None).unwrap();
    std::fs::set_permissions(&folder.0, Permissions::from_mode(0o777)).unwrap();
    let why = opening(&inside);
    assert!(why.contains("chmod +t") && !inside.0.exists(), "{why}");
    std::fs::set_permissions(&folder.0, Permissions::from_mode(0o1777)).unwrap();
    drop(Store::open(&inside.options(4 << 20, 1)).unwrap());
    std::fs::set_permissions(&folder.0, Permissions::from_mode(0o777)).unwrap();
    assert!(refusal(&inside.0).contains("chmod +t"));
}

#[test]
fn memory_that_is_handed_down_needs_no_name() {
    let file = Scratch::new("memory");
    let mut fd = File::options();
    fd.read(true).write(true).create_new(true).mode(0o600);
    let fd = fd.open(&file.0).unwrap();
    std::fs::remove_file(&file.0).unwrap();
    let options = StoreOptions {
        arena: Some(format!("/proc/self/fd/{}", fd.as_raw_fd()).into()),
        ..file.options(4 << 20, 1)
    };
    let first = Store::open(&options).unwrap();
    put(
        &first.pool("p", &persistent()).unwrap(),
        1,
        1,
        &page(Fill::Text, 1, 1, 4096),
    );
    let second = Store::open(&options).unwrap();
    assert_eq!(
        version(&second.find_pool("p").unwrap().unwrap(), 1, 1, 1),
        Some(1)
    );
}

// --- a file that is cut short while it is attached ---

#[test]
fn a_file_that_is_cut_short_is_an_error_of_its_arena_alone() {
    let (file, other) = (arena("cut"), arena("whole"));
    let (store, neighbour) = (
        Store::attach(&file.0, false).unwrap(),
        Store::attach(&other.0, false).unwrap(),
    );
    let pool = store.find_pool("p").unwrap().unwrap();
    let open = File::options().write(true).open(&file.0).unwrap();
    let length = open.metadata().unwrap().len();
    open.set_len(4096).unwrap();
    let broken = |error: Option<Error>| match error {
        Some(Error::Arena { why, .. }) => assert!(why.contains("truncated"), "{why}"),
        other => panic!("{other:?}"),
    };
    for _ in 0..3 {
        broken(pool.put(&support::oid(1), &[(1, &[1; 4096])]).err());
        broken(
            pool.get(&support::oid(1), &[1], &mut [&mut [0; 4096]], false)
                .err(),
        );
        broken(pool.flush(&support::oid(1), &[1]).err());
        broken(pool.flush_object(&support::oid(1)).err());
        broken(store.find_pool("p").err());
        broken(store.pools().err());
        broken(store.stats().err());
        broken(store.check().err());
        broken(store.compact().err());
        broken(store.whole().err());
    }
    open.set_len(length).unwrap();
    broken(store.check().err()); // as it was cut off, it stays
    drop((store, pool));
    assert_eq!(
        version(&neighbour.find_pool("p").unwrap().unwrap(), 1, 1, 1),
        Some(1)
    );
    assert_sound(&neighbour);
}

/// It happens in the midst of the work of several threads.
#[test]
fn a_file_that_is_cut_short_under_work_ends_nobody() {
    let file = Scratch::new("cut under work");
    let store = Store::open(&file.options(16 << 20, 2)).unwrap();
    let pool = store.pool("p", &persistent()).unwrap();
    let begun = std::sync::Barrier::new(4);
    std::thread::scope(|scope| {
        for worker in 0..3 {
            let (pool, begun) = (&pool, &begun);
            scope.spawn(move || {
                begun.wait();
                let mut index = 0;
                let page = page(Fill::Rough, 1, 1, 4096);
                while pool
                    .put(&support::oid(worker), &[(index % 500, &page)])
                    .is_ok()
                {
                    index += 1;
                }
            });
        }
        begun.wait();
        let open = File::options().write(true).open(&file.0).unwrap();
        open.set_len(4096 * 3).unwrap();
    });
    assert!(matches!(store.whole(), Err(Error::Arena { .. })));
}

/// A SIGBUS that has nothing to do with an arena does what it always did.
#[test]
fn a_signal_of_another_kind_still_ends_the_process() {
    use std::os::unix::process::ExitStatusExt;
    let exe = std::env::current_exe().unwrap();
    let mut child = Command::new(exe);
    child
        .args(["--exact", "signalled_child", "--nocapture"])
        .env(CHILD, "signal");
    let done = child.output().unwrap();
    assert_eq!(done.status.signal(), Some(7), "{:?}", done.status);
}

#[test]
fn signalled_child() {
    if std::env::var(CHILD).as_deref() == Ok("signal") {
        drop(arena("signalled")); // SIGBUS is handled from then on
        let own = std::process::id().to_string();
        // Rust's own handler lets the first pass, as a fault would come again by itself.
        for _ in 0..2 {
            let _ = Command::new("kill").args(["-BUS", &own]).status();
        }
    }
}

#[test]
fn two_opens_with_different_settings_name_the_difference() {
    let file = Scratch::new("settings");
    let first = Store::open(&file.options(4 << 20, 2)).unwrap();
    let pool = first.pool("p", &persistent()).unwrap();
    put(&pool, 1, 1, &page(Fill::Text, 1, 1, 4096));
    for (options, named) in [
        (file.options(8 << 20, 2), "memory"),
        (file.options(4 << 20, 4), "shards"),
        (
            StoreOptions {
                accept_threshold: 50,
                ..file.options(4 << 20, 2)
            },
            "accept_threshold",
        ),
    ] {
        match Store::open(&options) {
            Err(Error::Mismatch(why)) => assert!(why.contains(named), "{why}"),
            other => panic!("{:?}", other.err()),
        }
    }
    let second = Store::open(&file.options(4 << 20, 2)).unwrap();
    for (settings, named) in [
        (
            PoolSettings {
                quota: 1 << 20,
                ..persistent()
            },
            "quota",
        ),
        (
            PoolSettings {
                codec: Codec::Raw,
                ..persistent()
            },
            "codec",
        ),
        (
            PoolSettings {
                page_size: 8192,
                ..persistent()
            },
            "page_size",
        ),
        (inclusive(), "kind"),
    ] {
        match second.pool("p", &settings) {
            Err(Error::Mismatch(why)) => assert!(why.contains(named), "{why}"),
            other => panic!("{:?}", other.err()),
        }
    }
    assert_eq!(
        version(&second.pool("p", &persistent()).unwrap(), 1, 1, 1),
        Some(1)
    );
}

// --- a full file system ---

const CHILD: &str = "TMEM_BAD_ARENA_CHILD";

/// Run a test of this binary after a shell program, in mounts of its own; skipped, with a word, where those are not to be had.
fn in_a_mount_namespace(program: &str, test: &str, path: &Path) {
    let unshare = |command: &[&str]| {
        let mut unshare = Command::new("unshare");
        unshare
            .args(["--user", "--map-root-user", "--mount", "--", "sh", "-c"])
            .args(command);
        unshare.env(CHILD, path).env("RUST_BACKTRACE", "0");
        unshare
    };
    let possible = format!(
        "mount -t tmpfs -o size=1m tmpfs /mnt && {}",
        program.split("&& exec").next().expect("a program")
    );
    if !unshare(&[&possible, "sh"])
        .output()
        .is_ok_and(|done| done.status.success())
    {
        return println!("skipped: this user may make no mounts of its own");
    }
    let exe = std::env::current_exe().expect("this test binary");
    let exe = exe.to_str().expect("a plain path");
    let done = unshare(&[program, exe, "--exact", test, "--nocapture"])
        .output()
        .expect("unshare is there");
    let words =
        String::from_utf8_lossy(&done.stdout).into_owned() + &String::from_utf8_lossy(&done.stderr);
    assert!(
        done.status.success() && words.contains("1 passed"),
        "{}: {words}",
        done.status
    );
}

/// The file system is smaller than the arena may become: what does not fit is refused, and what was stored stays.
#[test]
fn a_full_file_system_is_a_refusal() {
    let program = "mount -t tmpfs -o size=3m tmpfs /mnt && exec \"$0\" \"$@\"";
    in_a_mount_namespace(program, "full_file_system_child", Path::new("/mnt"));
}

#[test]
fn full_file_system_child() {
    let Ok(dir) = std::env::var(CHILD) else {
        return;
    };
    let options = |name: &str| StoreOptions {
        memory: 64 << 20,
        shards: Some(2),
        arena: Some(Path::new(&dir).join(name)),
        ..StoreOptions::default()
    };
    refuses_what_does_not_fit(&options("arena"));
    survives_another_file_taking_the_rest(&options("arena"), Path::new(&dir));
    std::fs::remove_file(Path::new(&dir).join("arena")).unwrap();
    File::create(Path::new(&dir).join("rest")).unwrap();
    fill_up(Path::new(&dir));
    assert!(matches!(
        Store::open(&options("second")),
        Err(Error::Io { .. })
    ));
    assert!(
        !Path::new(&dir).join("second").exists(),
        "no half-made arena is left"
    );
}

fn noise(i: u32) -> Vec<u8> {
    page(Fill::Noise, 1, u64::from(i), 4096)
}

fn refuses_what_does_not_fit(options: &StoreOptions) {
    let store = Store::open(options).unwrap();
    let (kept, ephemeral) = (
        store.pool("p", &persistent()).unwrap(),
        store.pool("e", &inclusive()).unwrap(),
    );
    (0..100).for_each(|i| _ = put(&ephemeral, 1, i, &noise(i)));
    let outcomes: Vec<Outcome> = (0..2_000).map(|i| put(&kept, 1, i, &noise(i))).collect();
    let refused = outcomes.iter().filter(|outcome| !stored(**outcome)).count();
    assert!(refused > 500, "{refused} pages were refused");
    let first = outcomes.iter().find(|outcome| !stored(**outcome));
    assert_eq!(
        first,
        Some(&Outcome::Refused {
            reason: Reason::NoSpace,
            old_flushed: false
        })
    );
    assert!(stat(&store, "refused_no_space") > 0);
    assert_eq!(
        stat(&store, "footprint_frames"),
        stat(&store, "raw_pages"),
        "ephemeral pages gave way"
    );
    for (i, outcome) in (0..).zip(&outcomes) {
        assert_eq!(
            version(&kept, 1, i, 1),
            stored(*outcome).then_some(u64::from(i))
        );
    }
    // What is there may be replaced, and what is flushed makes room.
    assert_eq!(
        put(&kept, 1, 0, &noise(0)),
        Outcome::Stored { replaced: true }
    );
    kept.flush(&support::oid(1), &[3]).unwrap();
    assert_eq!(get(&kept, 1, 3), None);
    assert_sound(&store);
}

/// An arena on a file system that others fill: attached, rebuilt and used without a signal.
fn survives_another_file_taking_the_rest(options: &StoreOptions, dir: &Path) {
    let path = options.arena.as_deref().unwrap();
    fill_up(dir);
    // Left unfinished, as by a kill: the shard is rebuilt where there is no room to spare.
    File::options()
        .write(true)
        .open(path)
        .unwrap()
        .write_all_at(&1u32.to_le_bytes(), 4096 + 1024 * 256 + 64)
        .unwrap();
    let store = Store::attach(path, false).unwrap();
    assert_eq!(stat(&store, "recoveries"), 1);
    let kept = store.find_pool("p").unwrap().unwrap();
    let held = (0..2_000)
        .filter(|&i| version(&kept, 1, i, 1).is_some())
        .count() as u64;
    assert_eq!(held, stat(&store, "pages"));
    assert!(held > 300);
    assert_sound(&store);
    (0..2_000).for_each(|i| _ = put(&kept, 2, i, &noise(i)));
    assert_eq!(
        (0..2_000)
            .filter(|&i| version(&kept, 1, i, 1).is_some())
            .count() as u64,
        held
    );
    assert_sound(&store);
}

/// Write until the file system takes no more.
fn fill_up(dir: &Path) {
    use std::io::Write;
    let mut rest = File::options()
        .append(true)
        .create(true)
        .open(dir.join("rest"))
        .unwrap();
    while rest.write(&[1; 4096]).is_ok_and(|wrote| wrote > 0) {}
}
