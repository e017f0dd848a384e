//! What a volume is called on this host, and what the kernel counts of it: facts that no spelling changes.

use std::fs::{self, Metadata};
use std::net::{IpAddr, SocketAddr, ToSocketAddrs, UdpSocket};
use std::os::unix::fs::MetadataExt;

use rustix::fs::{major, minor};

use super::register::file_name;
use crate::client::{Endpoint, Uri};

/// Of a file, whatever links there are to it.
pub fn of_file(found: &Metadata) -> Vec<String> {
    vec![format!("file {:x} {}", found.dev(), found.ino())]
}

/// Of a block device, whatever its nodes: its number, what it bears in itself, and of a loop device the file.
pub fn of_device(found: &Metadata) -> Vec<String> {
    let about = sys(found);
    let told = |name: &str| {
        let text = fs::read_to_string(format!("{about}/{name}")).ok()?;
        Some(text.trim().to_string()).filter(|text| !text.is_empty())
    };
    let mut names = vec![format!("device {}", number(found))];
    names.extend(
        told("dm/uuid").map(|uuid| match uuid.strip_prefix("mpath-3") {
            Some(number) => format!("wwid {number}"),
            None => format!("dm {}", file_name(&uuid)),
        }),
    );
    let wwid = told("wwid").or_else(|| told("device/wwid"));
    names.extend(wwid.map(|wwid| {
        let bare = wwid.strip_prefix("naa.").unwrap_or(&wwid);
        format!("wwid {}", file_name(bare))
    }));
    let whole = ["loop/offset", "loop/sizelimit"].map(told) == [Some("0".into()), Some("0".into())];
    let file = told("loop/backing_file").filter(|_| whole);
    let file = file.and_then(|path| fs::metadata(path).ok());
    names.extend(file.iter().flat_map(of_file));
    names
}

/// Of another server's export: each address of the server, one name for all that are this host's.
pub fn of_export(uri: &Uri) -> Vec<String> {
    let export = file_name(&uri.export);
    let mut names: Vec<String> = match &uri.endpoint {
        Endpoint::Unix(path) => {
            let real = fs::canonicalize(path).unwrap_or_else(|_| path.clone());
            let socket =
                fs::metadata(path).map(|found| format!("nbd {:x} {}", found.dev(), found.ino()));
            let mut names = vec![format!("nbd {}", file_name(&real.to_string_lossy()))];
            names.extend(socket); // it may have several names
            names
        }
        Endpoint::Tcp { host, port } => (host.as_str(), *port)
            .to_socket_addrs()
            .map(|all| all.map(place).collect())
            .unwrap_or_else(|_| vec![format!("nbd {} {port}", file_name(host))]),
    };
    names
        .iter_mut()
        .for_each(|name| *name += &format!(" {export}"));
    names.sort();
    names.dedup();
    names
}

fn place(address: SocketAddr) -> String {
    let (ip, port) = (address.ip().to_canonical(), address.port());
    if !is_here(ip) {
        return format!("nbd {ip} {port}");
    }
    let network = fs::read_link("/proc/self/ns/net").unwrap_or_default();
    format!("nbd {} {port}", file_name(&network.to_string_lossy()))
}

/// Whether an address is this host's: it is then also what is spoken from to reach it.
fn is_here(ip: IpAddr) -> bool {
    let any: IpAddr = match ip {
        IpAddr::V4(_) => [0u8; 4].into(),
        IpAddr::V6(_) => [0u8; 16].into(),
    };
    let own = UdpSocket::bind((any, 0)).and_then(|socket| {
        socket.connect((ip, 9))?;
        socket.local_addr()
    });
    // Who asks for no address in particular gets this host.
    ip.is_loopback() || ip.is_unspecified() || own.is_ok_and(|own| own.ip() == ip)
}

/// What this host's kernel has counted of writes to a device: the boot, and the rest. None where it does not count.
pub fn writes(found: &Metadata) -> Option<String> {
    let about = sys(found);
    let read = |path: &str| fs::read_to_string(path).ok();
    let queue = read(&format!("{about}/queue/iostats"));
    let queue = queue.or_else(|| read(&format!("{about}/../queue/iostats")));
    if queue?.trim() == "0" {
        return None;
    }
    let boot = read("/proc/sys/kernel/random/boot_id")?;
    let attached = read(&format!("{about}/diskseq")).unwrap_or_default();
    let counted = read(&format!("{about}/stat"))?;
    let counted: Vec<&str> = counted.split_whitespace().collect();
    // Writes and discards: how many, and of how many sectors.
    let counted = [4, 6, 11, 13].map(|field| counted.get(field).copied().unwrap_or("0"));
    let (boot, attached) = (boot.trim(), attached.trim());
    Some(format!("{boot} {attached} {}", counted.join(" ")))
}

fn number(found: &Metadata) -> String {
    format!("{}:{}", major(found.rdev()), minor(found.rdev()))
}

fn sys(found: &Metadata) -> String {
    format!("/sys/dev/block/{}", number(found))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(uri: &str) -> Vec<String> {
        of_export(&Uri::parse(uri).unwrap())
    }

    #[test]
    fn an_export_of_this_host_has_one_name_however_it_is_spelled() {
        let here = names("nbd://127.0.0.1/a%20b");
        for uri in [
            "nbd://127.0.0.1:10809/a b",
            "nbd://[::1]/a%20b",
            "nbd://localhost/a b",
            "nbd://0.0.0.0/a b",
            "nbd://[::]/a b",
        ] {
            assert_eq!(names(uri), here, "{uri}");
        }
        for uri in [
            "nbd://127.0.0.1:10810/a b",
            "nbd://127.0.0.1/a",
            "nbd://192.0.2.1/a b",
        ] {
            assert_ne!(names(uri), here, "{uri}");
        }
    }

    #[test]
    fn a_socket_has_a_name_in_common_with_each_of_its_links() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let of = |name: &str| names(&format!("nbd+unix:///a?socket={}", path(name).display()));
        let _socket = std::os::unix::net::UnixListener::bind(path("one")).unwrap();
        let _other = std::os::unix::net::UnixListener::bind(path("other")).unwrap();
        fs::hard_link(path("one"), path("link")).unwrap();
        let in_common = |a: &str, b: &str| of(a).iter().any(|name| of(b).contains(name));
        assert!(in_common("one", "link") && !in_common("one", "other"));
    }
}
