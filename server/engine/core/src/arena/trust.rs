//! Which files may be arenas: those of our own user that nobody else can access, and that have exactly one name.
//!
//! Whoever can write an arena's file can read and change every page, so a file that someone else created, or that lets
//! others in, is refused before any of its content is believed. The checks look at the open file, not at its name. A
//! name under `/proc/self/fd` is a descriptor that this process was handed, usually memory without a name.

#![allow(unsafe_code)]

use std::fs::{File, OpenOptions, Permissions};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use crate::error::{Error, Result};

const STICKY: u32 = 0o1000;
const ANYBODY_WRITES: u32 = 0o002;
const OTHERS: u32 = 0o077;

pub fn io_error(path: &Path, what: &'static str, source: io::Error) -> Error {
    Error::Io {
        path: path.to_owned(),
        what,
        source,
    }
}

pub fn refusal(path: &Path, why: String) -> Error {
    let path = path.display().to_string();
    Error::Arena { path, why }
}

/// Open the arena at `path`, if it is one that may be attached.
pub fn open(path: &Path) -> Result<File> {
    let given = is_descriptor(path);
    let follow = if given { 0 } else { libc::O_NOFOLLOW };
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(follow | libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path);
    let file = file.map_err(|e| match e.raw_os_error() {
        Some(libc::ELOOP) => refusal(path, "it is a symbolic link; name the file itself".into()),
        _ => io_error(path, "cannot open", e),
    })?;
    check(&file, path)?;
    if !given {
        check_folder(path)?;
    }
    Ok(file)
}

/// Whether a path is that of a descriptor of this process.
pub fn is_descriptor(path: &Path) -> bool {
    let number = path
        .to_str()
        .and_then(|path| path.strip_prefix("/proc/self/fd/"));
    number.is_some_and(|number| number.parse::<u32>().is_ok())
}

fn check(file: &File, path: &Path) -> Result<()> {
    let meta = file
        .metadata()
        .map_err(|e| io_error(path, "cannot stat", e))?;
    let (owner, mode, own) = (meta.uid(), meta.mode(), user());
    let shown = path.display();
    let why = if !meta.is_file() {
        "it is not a regular file".into()
    } else if owner != own {
        format!(
            "it belongs to user {owner}, and this process runs as user {own}: its owner could read and change every page; run as that user, or name another file"
        )
    } else if mode & OTHERS != 0 {
        format!(
            "its mode {:03o} gives others access: they could read or change every page; if nobody has done so yet, run `chmod 600 {shown}`",
            mode & 0o777
        )
    } else if meta.nlink() > 1 {
        let names = meta.nlink();
        format!("it has {names} names (hard links); an arena has one")
    } else {
        return Ok(());
    };
    Err(refusal(path, why))
}

/// The folder that a path's file is in.
pub fn folder(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// Refuse a folder in which anybody may put another file in the arena's place.
pub fn check_folder(path: &Path) -> Result<()> {
    let folder = folder(path);
    let meta = std::fs::metadata(folder).map_err(|e| io_error(path, "cannot open", e))?;
    let open = meta.mode() & ANYBODY_WRITES != 0 && meta.mode() & STICKY == 0;
    if !open || meta.uid() == user() {
        return Ok(());
    }
    let folder = folder.display();
    let why = format!(
        "anybody may remove or replace files in {folder} (mode {:03o}); run `chmod +t {folder}`, or give the arena a folder of its own",
        meta.mode() & 0o7777
    );
    Err(refusal(path, why))
}

fn user() -> u32 {
    // SAFETY: a plain query that cannot fail.
    unsafe { libc::geteuid() }
}

/// A file without a name, to be given one with `link` when it is ready.
pub fn unnamed(path: &Path) -> Result<File> {
    check_folder(path)?;
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .mode(0o600)
        .custom_flags(libc::O_TMPFILE)
        .open(folder(path));
    file.map_err(|e| io_error(path, "cannot create", e))
}

/// Memory that has no name and goes with its last user; nobody can cut it short once it is sealed.
pub fn memfd() -> io::Result<File> {
    let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
    // SAFETY: a plain system call; the descriptor it returns is owned by nobody else.
    let file = unsafe {
        match libc::memfd_create(c"tmem-arena".as_ptr(), flags) {
            -1 => return Err(io::Error::last_os_error()),
            fd => File::from_raw_fd(fd),
        }
    };
    file.set_permissions(Permissions::from_mode(0o600))?;
    Ok(file)
}

/// Have a memory file keep its length. Other files cannot be sealed and are left as they are.
pub fn seal(file: &File) {
    let seals = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW;
    // SAFETY: a plain system call.
    unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, seals) };
}

/// Give an unnamed file its name; fails where the name is taken.
pub fn link(file: &File, path: &Path) -> io::Result<()> {
    use std::ffi::CString;
    use std::os::unix::ffi::OsStrExt;
    let from = CString::new(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
    let to = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: both are NUL-terminated strings that outlive the call.
    let done = unsafe {
        libc::linkat(
            libc::AT_FDCWD,
            from.as_ptr(),
            libc::AT_FDCWD,
            to.as_ptr(),
            libc::AT_SYMLINK_FOLLOW,
        )
    };
    if done == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
