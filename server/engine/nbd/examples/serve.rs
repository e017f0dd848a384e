//! A server without a daemon around it, to try clients on and to measure without Python.
//!
//! `serve ADDRESS NAME=MIB... [codec=CODEC] [poll=MICROSECONDS] [tls=FOLDER]`; the folder has `server.pem`,
//! `server.key` and `ca.pem`. It ends when its standard input does.

use std::io::Read;
use std::sync::Arc;
use std::time::Duration;

use tmem_core::{Codec, Kind, Oid, PoolSettings, Store, StoreOptions};
use tmem_nbd::{Access, Exports, PoolExport, PoolExportSettings, Server, Settings, Tls};

type Failure = Box<dyn std::error::Error>;

fn tls(folder: &str) -> Result<Tls, Failure> {
    let read = |name: &str| std::fs::read(format!("{folder}/{name}"));
    let (chain, key, clients) = (read("server.pem")?, read("server.key")?, read("ca.pem")?);
    Ok(Tls::new(&chain, &key, Some(&clients), true)?)
}

fn main() -> Result<(), Failure> {
    let mut arguments = std::env::args().skip(1);
    let address = arguments.next().ok_or("no address")?;
    let (mut pool, mut settings) = (PoolSettings::new(Kind::Persistent), Settings::default());
    let mut disks = Vec::new();
    for argument in arguments {
        match argument.split_once('=').ok_or("no NAME=VALUE")? {
            ("codec", codec) => pool.codec = Codec::parse(codec)?,
            ("poll", time) => settings.poll = Duration::from_micros(time.parse()?),
            ("tls", folder) => settings.tls = Some(tls(folder)?),
            (name, size) => disks.push((name.to_owned(), size.parse::<u64>()? << 20)),
        }
    }
    let bytes: u64 = disks.iter().map(|(_, size)| size).sum();
    let store = Store::open(&StoreOptions {
        memory: bytes + bytes / 4 + (64 << 20),
        ..StoreOptions::default()
    })?;
    let exports = Exports::new();
    for (name, size) in disks {
        let pool = store.pool(&format!("export/{name}"), &pool)?;
        let sharing = PoolExportSettings {
            multi_conn: true,
            ..PoolExportSettings::default()
        };
        let export = PoolExport::new(pool, Oid([1; 24]), size, sharing)?;
        exports.add(&name, Arc::new(export), Access::Everybody)?;
    }
    let server = Server::start(&[address.parse()?], exports, settings)?;
    println!("{}", server.addresses().join(" "));
    std::io::stdin().read_to_end(&mut Vec::new())?;
    server.stop(Duration::from_secs(5));
    Ok(())
}
