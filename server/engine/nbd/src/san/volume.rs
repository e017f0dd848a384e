//! The names under which a volume's pages are cached, and the token by which a clean detach allows a warm start.
//!
//! A volume that only this gateway writes to gets a random object, its **generation**, whenever it starts cold: what was
//! cached before is then never read. A clean detach leaves a token: the volume's fingerprint when its last byte was
//! written, and the generation. Who attaches takes the token away, for good, before it looks into it; so a gateway that
//! crashes leaves none, and nobody starts warm twice from one. A token whose fingerprint differs is worthless: somebody
//! else wrote to the volume.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::backing::Backing;
use super::link::{Generation, hex};

const MAGIC: &str = "tmem san token 1";
/// Longest token, in bytes.
const LONGEST: u64 = 64 << 10;
/// Two changes of a file within so long may have one ctime: a tick of the clock that stamps them, and some.
const SETTLED: Duration = Duration::from_millis(50);

/// Where tokens are kept, and whose.
#[derive(Clone, Debug)]
pub struct Tokens {
    pub directory: PathBuf,
    /// What tells this volume, pool and server from others: any text without line breaks.
    pub key: String,
    /// Start warm after a clean detach although nothing tells whether the volume was written to since.
    pub trust: bool,
}

impl Tokens {
    fn path(&self) -> PathBuf {
        let name: String = self
            .key
            .bytes()
            .map(|byte| match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' => {
                    char::from(byte).to_string()
                }
                other => format!("_{other:02x}"),
            })
            .collect();
        let cut = name.len().saturating_sub(200); // the end tells more than the beginning; the key inside is compared
        self.directory.join(format!("{}.token", &name[cut..]))
    }

    fn fingerprint(&self, backing: &dyn Backing) -> Option<String> {
        let size = backing.size();
        backing
            .fingerprint()
            .or_else(|| self.trust.then(|| format!("trusted {size}")))
    }

    /// Take the token away. What it allows, if it is this volume's as it is now.
    pub fn consume(&self, backing: &dyn Backing) -> io::Result<Option<Generation>> {
        fs::create_dir_all(&self.directory)?;
        let path = self.path();
        let mut text = String::new();
        match File::open(&path) {
            Ok(file) => file
                .take(LONGEST)
                .read_to_string(&mut text)
                .map(|_| ())
                .or_else(|error| match error.kind() {
                    io::ErrorKind::InvalidData => Ok(()),
                    _ => Err(error),
                })?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        }
        fs::remove_file(&path)?;
        sync(&self.directory)?;
        let fingerprint = self.fingerprint(backing);
        Ok(fingerprint.and_then(|fingerprint| self.read(&text, &fingerprint)))
    }

    fn read(&self, text: &str, fingerprint: &str) -> Option<Generation> {
        let lines: Vec<&str> = text.lines().collect();
        let [MAGIC, key, known, object, instance, "end"] = lines[..] else {
            return None;
        };
        if key != self.key || known != fingerprint {
            return None;
        }
        let object: [u8; 24] = crate::cache::hex(object)?;
        Some(Generation {
            object,
            instance: Some(instance.into()),
        })
    }

    /// Leave a token. The volume is no longer written to, and what was written is durable.
    pub fn leave(&self, backing: &dyn Backing, generation: &Generation) -> io::Result<bool> {
        settle(backing);
        let (Some(fingerprint), Some(instance)) = (self.fingerprint(backing), &generation.instance)
        else {
            return Ok(false);
        };
        let object = hex(&generation.object);
        let lines = [MAGIC, &self.key, &fingerprint, &object, instance, "end"];
        if lines.iter().any(|line| line.contains('\n')) {
            return Ok(false);
        }
        let new = self.path().with_extension("new");
        let mut file = File::create(&new)?;
        file.write_all((lines.join("\n") + "\n").as_bytes())?;
        file.sync_all()?;
        fs::rename(&new, self.path())?;
        sync(&self.directory)?;
        Ok(true)
    }
}

/// Wait until a change from now on is sure to be stamped otherwise than the last one.
fn settle(backing: &dyn Backing) {
    if backing.fingerprint().is_some() {
        std::thread::sleep(SETTLED);
    }
}

fn sync(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}
