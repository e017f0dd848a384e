//! The names under which a volume's pages are cached, and the token by which a clean detach allows a warm start.
//!
//! A volume that only this gateway writes to gets a random object, its **generation**, whenever it starts cold: what was
//! cached before is then never read. A clean detach leaves a token: the volume's fingerprint when its last byte was
//! written, and the generation. Who attaches takes the token away, for good, before it looks into it; so a gateway that
//! crashes leaves none, and nobody starts warm twice from one. A token whose fingerprint differs is worthless: somebody
//! else wrote to the volume.
//!
//! Of a volume that has no fingerprint a token counts only if it is trusted, and only with its mark: see `register`. The
//! mark is gone once any gateway of this user and host has attached the volume, for whatever pool, from whatever state
//! folder, on whatever way; and it counts only if the volume's sample is what it was, and so are the writes that this
//! host's kernel has counted since. What no gateway here can see is trusted: that nobody wrote from elsewhere.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use super::backing::Backing;
use super::register::{Mark, Register, at, file_name, make_folder, read, store, sync};
use super::sample::sample;
use crate::san::bytes::hex;
use crate::san::cache::link::Generation;

const MAGIC: &str = "tmem san token 1";
/// Stands for the fingerprint of a volume that has none, before the mark's id.
const MARKED: &str = "marked";
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
        let name = file_name(&self.key); // what is cut off is compared inside
        self.directory.join(format!("{name}.token"))
    }

    /// Take the token away. What it allows, if it is this volume's as it is now; `voided`: by this attach.
    pub fn consume(
        &self,
        backing: &dyn Backing,
        voided: &Voided,
    ) -> io::Result<Option<Generation>> {
        make_folder(&self.directory)?;
        let path = self.path();
        let Some(text) = read(&path)? else {
            return Ok(None);
        };
        fs::remove_file(&path).map_err(|error| at(&path, error))?;
        sync(&self.directory)?;
        Ok(self.read(&text).and_then(|(known, generation)| {
            let valid = match backing.fingerprint() {
                Some(fingerprint) => known == fingerprint,
                None => self.trust && voided.vouch(known, backing),
            };
            valid.then_some(generation)
        }))
    }

    fn read<'t>(&self, text: &'t str) -> Option<(&'t str, Generation)> {
        let lines: Vec<&str> = text.lines().collect();
        let [MAGIC, key, known, object, instance, "end"] = lines[..] else {
            return None;
        };
        let generation = Generation {
            object: crate::backends::cache_object::hex(object)?,
            instance: Some(instance.into()),
        };
        (key == self.key).then_some((known, generation))
    }

    /// Leave a token. The volume is no longer written to, and what was written is durable.
    pub fn leave(
        &self,
        backing: &dyn Backing,
        register: Option<&Register>,
        generation: &Generation,
    ) -> io::Result<bool> {
        settle(backing);
        let Some(instance) = &generation.instance else {
            return Ok(false);
        };
        let known = match (backing.fingerprint(), register) {
            (Some(fingerprint), _) => fingerprint,
            (None, Some(register)) if self.trust => match mark(backing) {
                Some(mark) => format!("{MARKED} {}", register.mark(&mark)?),
                None => return Ok(false),
            },
            _ => return Ok(false),
        };
        let object = hex(&generation.object);
        let lines = [MAGIC, &self.key, &known, &object, instance, "end"];
        if lines.iter().any(|line| line.contains('\n')) {
            return Ok(false);
        }
        store(&self.path(), &(lines.join("\n") + "\n"))?;
        Ok(true)
    }
}

/// The marks that an attach took away.
#[derive(Default)]
pub struct Voided(Vec<Mark>);

impl Voided {
    pub fn of(register: &Register, backing: &dyn Backing) -> io::Result<Voided> {
        let voided = register.void(&backing.names(), backing.size(), || sample(backing))?;
        Ok(Voided(voided))
    }

    /// Whether one of them says that the volume is what it was.
    fn vouch(&self, known: &str, backing: &dyn Backing) -> bool {
        let id = known.strip_prefix(MARKED).map(str::trim);
        let then = self.0.iter().find(|mark| Some(&*mark.id) == id);
        let (Some(then), Some(now)) = (then, mark(backing)) else {
            return false;
        };
        let boot = |witness: &str| witness.split(' ').next().map(String::from);
        let witnessed = then.witness == now.witness || boot(&then.witness) != boot(&now.witness);
        (then.size, &then.content) == (now.size, &now.content) && witnessed
    }
}

/// Wait until a change from now on is sure to be stamped otherwise than the last one.
fn settle(backing: &dyn Backing) {
    if backing.fingerprint().is_some() {
        std::thread::sleep(SETTLED);
    }
}

fn mark(backing: &dyn Backing) -> Option<Mark> {
    Some(Mark {
        id: String::new(),
        names: backing.names(),
        size: backing.size(),
        content: sample(backing)?,
        witness: backing.witness().unwrap_or_default(),
    })
}
