//! What the gateways of one user on this host know of each other: who serves which volume, and which tokens still count.
//!
//! It is one folder whatever the gateways' `--state`. A volume goes by several *names*, each a way to it; gateways whose
//! volumes have a name in common serve the same one.
//!
//! - A **hold** is a lock on a file for each name, for as long as the gateway lives: one exclusive gateway, or many that
//!   share. The kernel releases it with the process.
//! - A **mark** stands for a token of a volume that cannot tell by itself whether it was written to. An attach takes away,
//!   for good, every mark of its volume: those with a name in common, and those of a volume that holds the same (see
//!   `sample`), as it may be this one on a way that the names do not show. A token without its mark is worthless.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use crate::san::bytes::{hex, random};

const MAGIC: &str = "tmem san mark 1";
/// Longest file that is read here, in bytes.
const LONGEST: u64 = 64 << 10;
/// Names the folder, for containers that share one and for tests.
const VARIABLE: &str = "TMEM_SAN_HOST_STATE";

/// The folder.
#[derive(Clone, Debug)]
pub struct Register(PathBuf);

/// What a volume was when a token was left.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mark {
    pub id: String,
    pub names: Vec<String>,
    pub size: u64,
    pub content: String,
    /// See [`crate::san::Backing::witness`].
    pub witness: String,
}

/// A volume is this gateway's.
pub struct Hold {
    file: File,
    path: PathBuf,
}

impl Drop for Hold {
    fn drop(&mut self) {
        if flock(&self.file, FlockOperation::NonBlockingLockExclusive).is_ok() {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Where tokens are kept unless it is said: with the state of the system, or of the user.
pub fn default_state() -> Option<PathBuf> {
    if rustix::process::geteuid().is_root() {
        return Some("/var/lib/tmem/san".into());
    }
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    let home = || set("HOME").map(|home| Path::new(&home).join(".local/state"));
    let state = set("XDG_STATE_HOME").map(PathBuf::from).or_else(home)?;
    Some(state.join("tmem/san"))
}

impl Register {
    pub fn at(folder: impl Into<PathBuf>) -> Register {
        Register(folder.into())
    }

    /// This user's on this host; in `state` where the user has no place for it.
    pub fn of_user(state: &Path) -> Register {
        if let Some(named) = std::env::var_os(VARIABLE) {
            return Register(named.into());
        }
        let usual = default_state().map(Register);
        let usable = usual.filter(|usual| usual.folder("held").is_ok());
        usable.unwrap_or_else(|| Register(state.into()))
    }

    fn folder(&self, name: &str) -> io::Result<PathBuf> {
        let path = self.0.join(name);
        make_folder(&path)?;
        Ok(path)
    }

    /// Hold a volume until all that is returned is dropped; [`io::ErrorKind::ResourceBusy`] where another gateway does.
    pub fn hold(&self, names: &[String], exclusive: bool) -> io::Result<Vec<Hold>> {
        let folder = self.folder("held")?;
        let mut names = names.to_vec();
        names.sort();
        let path = |name: &String| folder.join(file_name(name));
        let held = names.iter().map(|name| lock(path(name), exclusive));
        held.collect()
    }

    /// Take away all marks of a volume; they are returned. `content` is asked at most once.
    pub fn void(
        &self,
        names: &[String],
        size: u64,
        content: impl FnOnce() -> Option<String>,
    ) -> io::Result<Vec<Mark>> {
        let folder = self.folder("marks")?;
        let mut voided = Vec::new();
        let (mut content, mut known) = (Some(content), None);
        for entry in fs::read_dir(&folder).map_err(|e| at(&folder, e))? {
            let path = entry.map_err(|e| at(&folder, e))?.path();
            let mark = read(&path)?.and_then(|text| Mark::parse(&path, &text));
            let other = mark.as_ref().is_some_and(|mark| {
                let known = known.get_or_insert_with(|| content.take().and_then(|ask| ask()));
                let named = mark.names.iter().any(|name| names.contains(name));
                let alike = || known.as_ref().is_none_or(|known| *known == mark.content);
                !named && (mark.size != size || !alike())
            });
            if other {
                continue;
            }
            match fs::remove_file(&path) {
                Ok(()) => voided.extend(mark),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {} // another's attach took it
                Err(error) => return Err(at(&path, error)),
            }
        }
        sync(&folder)?;
        Ok(voided)
    }

    /// Leave a mark; its id.
    pub fn mark(&self, mark: &Mark) -> io::Result<String> {
        let folder = self.folder("marks")?;
        let id = hex(&random::<16>());
        let path = folder.join(&id);
        store(&path, &mark.text())?;
        Ok(id)
    }
}

impl Mark {
    fn text(&self) -> String {
        let mut lines = vec![
            MAGIC.into(),
            self.size.to_string(),
            self.content.clone(),
            self.witness.clone(),
        ];
        lines.extend(self.names.iter().cloned());
        lines.push("end\n".into());
        lines.join("\n")
    }

    fn parse(path: &Path, text: &str) -> Option<Mark> {
        let lines: Vec<&str> = text.lines().collect();
        let [MAGIC, size, content, witness, ref names @ .., "end"] = lines[..] else {
            return None;
        };
        Some(Mark {
            id: path.file_name()?.to_str()?.into(),
            names: names.iter().map(|&name| name.into()).collect(),
            size: size.parse().ok()?,
            content: content.into(),
            witness: witness.into(),
        })
    }
}

fn lock(path: PathBuf, exclusive: bool) -> io::Result<Hold> {
    let how = match exclusive {
        true => FlockOperation::NonBlockingLockExclusive,
        false => FlockOperation::NonBlockingLockShared,
    };
    loop {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        let file = options.mode(0o600).open(&path).map_err(|e| at(&path, e))?;
        if flock(&file, how).is_err() {
            return Err(busy(&file));
        }
        // One that ended may have removed the file between.
        let inode = file.metadata().map_err(|e| at(&path, e))?.ino();
        if !fs::metadata(&path).is_ok_and(|found| found.ino() == inode) {
            continue;
        }
        let who = std::process::id().to_string();
        let told = file.set_len(0);
        if exclusive {
            let _ = told.and_then(|()| (&file).write_all(who.as_bytes()));
        }
        return Ok(Hold { file, path });
    }
}

fn busy(held: &File) -> io::Error {
    let mut who = String::new();
    let _ = held.take(20).read_to_string(&mut who);
    let what = match who.parse::<u32>() {
        Ok(process) => format!("another gateway serves it, process {process}"),
        Err(_) => "gateways serve it --shared".into(),
    };
    let why = format!("{what}; neither would see what the other writes");
    io::Error::new(io::ErrorKind::ResourceBusy, why)
}

/// What may stand in a file's name and as one line of a file: the end of a long text, as it tells more.
pub fn file_name(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'.';
    let name: String = text
        .bytes()
        .map(|byte| match byte {
            byte if plain(byte) => char::from(byte).to_string(),
            other => format!("_{other:02x}"),
        })
        .collect();
    name[name.len().saturating_sub(200)..].into()
}

/// An error that says where.
pub fn at(path: &Path, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

pub fn make_folder(path: &Path) -> io::Result<()> {
    let mut builder = DirBuilder::new();
    let made = builder.recursive(true).mode(0o700).create(path);
    made.map_err(|error| at(path, error))
}

/// A small file; None where there is none, "" where it is no text.
pub fn read(path: &Path) -> io::Result<Option<String>> {
    let mut text = String::new();
    let read = File::open(path).and_then(|file| file.take(LONGEST).read_to_string(&mut text));
    match read {
        Ok(_) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => Ok(Some(String::new())),
        Err(error) => Err(at(path, error)),
    }
}

/// Have a file say this, whole or not at all, also after power was lost.
pub fn store(path: &Path, text: &str) -> io::Result<()> {
    let new = path.with_extension("new");
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    let written = options.open(&new).and_then(|mut file| {
        file.write_all(text.as_bytes())?;
        file.sync_all()
    });
    written
        .and_then(|()| fs::rename(&new, path))
        .map_err(|error| at(path, error))?;
    sync(path.parent().unwrap_or(path))
}

pub fn sync(directory: &Path) -> io::Result<()> {
    let synced = File::open(directory).and_then(|directory| directory.sync_all());
    synced.map_err(|error| at(directory, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(of: &[&str]) -> Vec<String> {
        of.iter().map(|name| (*name).into()).collect()
    }

    fn marked(register: &Register, of: &[&str], content: &str) -> String {
        let mark = Mark {
            names: names(of),
            size: 7,
            content: content.into(),
            ..Mark::default()
        };
        register.mark(&mark).unwrap()
    }

    #[test]
    fn an_attach_takes_the_marks_of_its_volume_whatever_it_is_called() {
        let folder = tempfile::tempdir().unwrap();
        let register = Register::at(folder.path());
        let left = |size, content: Option<&str>| -> Vec<String> {
            let content = content.map(String::from);
            let voided = register.void(&names(&["a", "b"]), size, || content);
            let mut ids: Vec<_> = voided.unwrap().into_iter().map(|mark| mark.id).collect();
            ids.sort();
            ids
        };
        let named = marked(&register, &["b", "c"], "other");
        let alike = marked(&register, &["d"], "same");
        let stranger = marked(&register, &["e"], "different");
        let mut both = vec![named, alike];
        both.sort();
        assert_eq!(left(7, Some("same")), both);
        assert_eq!(left(7, Some("same")), Vec::<String>::new());
        assert_eq!(left(8, None), Vec::<String>::new());
        assert_eq!(left(7, None), vec![stranger]);
    }

    #[test]
    fn one_gateway_or_many_that_share() {
        let folder = tempfile::tempdir().unwrap();
        let register = Register::at(folder.path());
        let hold = |name: &str, exclusive| register.hold(&names(&[name, "z"]), exclusive);
        let first = hold("a", true).unwrap();
        let why = hold("b", true).map(drop).unwrap_err().to_string();
        assert!(why.contains(&std::process::id().to_string()), "{why}");
        assert!(hold("b", false).is_err());
        drop(first);
        let (one, two) = (hold("a", false).unwrap(), hold("b", false).unwrap());
        assert!(
            hold("a", true)
                .map(drop)
                .unwrap_err()
                .to_string()
                .contains("--shared")
        );
        drop((one, two));
        drop(hold("a", true).unwrap());
        assert_eq!(fs::read_dir(folder.path().join("held")).unwrap().count(), 0);
    }
}
