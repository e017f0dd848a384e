//! Standard streams that never block the process.

use std::fs::OpenOptions;
use std::os::fd::{AsFd, AsRawFd, IntoRawFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// What a pipe takes at once when it takes anything.
const AT_ONCE: usize = 4096;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    Output,
    Error,
}

/// Have descriptors 0 to 2 open, whatever this process was started with: no socket or volume must get these numbers.
pub fn open_standard() {
    while let Ok(file) = OpenOptions::new().read(true).write(true).open("/dev/null") {
        if file.as_raw_fd() > 2 {
            return;
        }
        let _ = file.into_raw_fd(); // stays open
    }
}

/// Write a line as far as the other side takes it within the limit; what it does not take is dropped.
pub fn say(stream: Stream, line: &str, limit: Duration) {
    let (output, error) = (std::io::stdout(), std::io::stderr());
    let stream = match stream {
        Stream::Output => output.as_fd(),
        Stream::Error => error.as_fd(),
    };
    let limit = Timespec {
        tv_sec: limit.as_secs() as i64,
        tv_nsec: limit.subsec_nanos().into(),
    };
    let line = format!("{line}\n");
    let mut rest = line.as_bytes();
    while !rest.is_empty() {
        let mut fds = [PollFd::from_borrowed_fd(stream, PollFlags::OUT)];
        if !matches!(poll(&mut fds, Some(&limit)), Ok(1)) {
            return;
        }
        match rustix::io::write(stream, &rest[..rest.len().min(AT_ONCE)]) {
            Ok(count) => rest = &rest[count..],
            Err(_) => return,
        }
    }
}
