//! An nbdkit process as another's NBD server.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

pub struct Nbdkit {
    child: Child,
    directory: TempDir,
}

impl Nbdkit {
    /// None where nbdkit is not installed.
    pub fn start(arguments: &[&str]) -> Option<Nbdkit> {
        let directory = TempDir::new().unwrap();
        let child = Command::new("nbdkit")
            .args(["-f", "-U"])
            .arg(directory.path().join("nbd"))
            .arg("-P")
            .arg(directory.path().join("pid"))
            .args(arguments)
            .stdin(Stdio::null())
            .spawn();
        let child = match child {
            Ok(child) => child,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                eprintln!("nbdkit is not installed: not tested against it");
                return None;
            }
            Err(error) => panic!("nbdkit: {error}"),
        };
        let server = Nbdkit { child, directory };
        let pid = server.directory.path().join("pid");
        let deadline = Instant::now() + Duration::from_secs(60);
        while std::fs::read_to_string(&pid).map_or(true, |pid| pid.is_empty()) {
            assert!(Instant::now() < deadline, "nbdkit does not start");
            std::thread::yield_now();
        }
        Some(server)
    }

    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("nbd")
    }

    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Nbdkit {
    fn drop(&mut self) {
        self.kill();
    }
}
