//! TLS: required, optional, and clients known by their certificates.

mod support;

use std::os::unix::net::UnixStream;
use std::sync::Arc;

use rcgen::{
    BasicConstraints, Certificate, CertificateParams, CertifiedIssuer, DnType, DnValue, IsCa,
    KeyPair, SanType,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use support::{PATIENCE, Served, Wire, disk, serve_with};
use tmem_nbd::protocol::{command, option, reply};
use tmem_nbd::{Access, Settings, Tls};

const MIB: u64 = 1 << 20;

type Authority = CertifiedIssuer<'static, KeyPair>;

fn authority() -> Authority {
    let mut parameters = CertificateParams::default();
    parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(parameters, KeyPair::generate().unwrap()).unwrap()
}

/// A certificate with a common name, or else with a DNS name.
fn certified(by: &Authority, common: Option<&str>, other: &str) -> (Certificate, KeyPair) {
    let mut parameters = CertificateParams::default();
    parameters.distinguished_name = rcgen::DistinguishedName::new();
    if let Some(name) = common {
        parameters.distinguished_name.push(DnType::CommonName, name);
    }
    parameters.subject_alt_names = vec![SanType::DnsName(other.try_into().unwrap())];
    let key = KeyPair::generate().unwrap();
    (parameters.signed_by(&key, by).unwrap(), key)
}

fn server(authority: &Authority, clients: bool, required: bool) -> Served {
    let (own, key) = certified(authority, None, "server");
    let clients = clients.then(|| authority.pem());
    let clients = clients.as_ref().map(|pem| pem.as_bytes());
    let (own, key) = (own.pem(), key.serialize_pem());
    let tls = Tls::new(own.as_bytes(), key.as_bytes(), clients, required).unwrap();
    let settings = Settings {
        tls: Some(tls),
        ..Settings::default()
    };
    serve_with(disk(4 * MIB, true), settings)
}

fn greet(served: &Served) -> Wire {
    Wire::greet(UnixStream::connect(&served.path).unwrap())
}

/// A client that has gone over to TLS, with a certificate if it has one.
fn encrypted(served: &Served, by: &Authority, own: Option<&(Certificate, KeyPair)>) -> Wire {
    let stream = UnixStream::connect(&served.path).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut wire = Wire::greet(stream.try_clone().unwrap());
    wire.option(option::STARTTLS, &[]);
    assert_eq!(wire.option_reply().0, reply::ACK);
    let mut roots = RootCertStore::empty();
    roots.add(by.der().clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider);
    let builder = builder.with_safe_default_protocol_versions().unwrap();
    let builder = builder.with_root_certificates(roots);
    let config = match own {
        None => builder.with_no_client_auth(),
        Some((own, key)) => {
            let key = PrivateKeyDer::from_pem_slice(key.serialize_pem().as_bytes()).unwrap();
            let chain: Vec<CertificateDer<'static>> = vec![own.der().clone()];
            builder.with_client_auth_cert(chain, key).unwrap()
        }
    };
    let name = ServerName::try_from("server").unwrap();
    let connection = ClientConnection::new(Arc::new(config), name).unwrap();
    wire.stream = Box::new(StreamOwned::new(connection, stream));
    wire
}

#[test]
fn all_sizes_of_requests_pass_through_tls() {
    let authority = authority();
    let served = server(&authority, false, true);
    let mut wire = encrypted(&served, &authority, None);
    wire.option(option::STRUCTURED_REPLY, &[]);
    assert_eq!(wire.option_reply().0, reply::ACK);
    wire.structured = true;
    wire.go("disk").unwrap();
    for length in [1usize, 100, 4096, 16384, 65536 + 5, 3 * MIB as usize] {
        let data: Vec<u8> = (0..length).map(|i| (i / 3) as u8).collect();
        wire.write(7, &data).unwrap();
        assert!(
            wire.read(7, length as u32).unwrap() == data,
            "{length} bytes"
        );
    }
    let cookies: Vec<u64> = (0..200)
        .map(|page| wire.ask(command::READ, 0, page * 4096, 4096, &[]))
        .collect();
    for cookie in cookies {
        assert_eq!(wire.answer(4096).cookie, cookie);
    }
    assert!(served.exports.list()[0].clients[0].tls);
}

#[test]
fn where_tls_is_required_nothing_is_said_without_it() {
    let served = server(&authority(), false, true);
    let mut wire = greet(&served);
    for asked in [option::LIST, option::STRUCTURED_REPLY, option::INFO, 99] {
        wire.option(asked, &[]);
        assert_eq!(wire.option_reply().0, reply::ERR_TLS_REQD);
    }
    assert_eq!(wire.go("disk").unwrap_err().0, reply::ERR_TLS_REQD);
    wire.option(option::EXPORT_NAME, b"disk");
    assert!(wire.is_closed());
}

#[test]
fn where_tls_is_optional_both_are_served_and_without_any_it_is_refused() {
    let authority = authority();
    let served = server(&authority, false, false);
    assert_eq!(served.connect(true).read(0, 10).unwrap(), [0; 10]);
    let mut wire = encrypted(&served, &authority, None);
    wire.go("disk").unwrap();
    assert_eq!(wire.read(0, 10).unwrap(), [0; 10]);
    served.server.set_tls(None);
    let mut wire = greet(&served);
    wire.option(option::STARTTLS, &[]);
    assert_eq!(wire.option_reply().0, reply::ERR_UNSUP);
    wire.go("disk").unwrap();
}

#[test]
fn clients_are_known_by_their_certificates_and_see_what_is_theirs() {
    let authority = authority();
    let served = server(&authority, true, true);
    let theirs = Access::Identities(vec!["alice".into()]);
    let _ = served.exports.add("hers", disk(MIB, true), theirs);
    let alice = certified(&authority, Some("alice"), "alice");
    let bob = certified(&authority, None, "bob.example");
    let mut wire = encrypted(&served, &authority, Some(&alice));
    wire.go("hers").unwrap();
    let clients = &served.exports.list()[1].clients;
    assert_eq!(clients[0].identity.as_deref(), Some("alice"));
    let mut wire = encrypted(&served, &authority, Some(&bob));
    assert_eq!(wire.go("hers").unwrap_err().0, reply::ERR_UNKNOWN);
    wire.option(option::LIST, &[]);
    assert_eq!(wire.option_reply(), (reply::SERVER, support::name("disk")));
    assert_eq!(wire.option_reply().0, reply::ACK);
    wire.go("disk").unwrap();
    let clients = &served.exports.list()[0].clients;
    assert_eq!(clients[0].identity.as_deref(), Some("bob.example"));
}

#[test]
fn who_may_no_longer_open_an_export_is_cut_off_and_the_others_go_on() {
    let authority = authority();
    let served = server(&authority, true, true);
    let of = |names: &[&str]| Access::Identities(names.iter().map(|&name| name.into()).collect());
    let both = of(&["alice", "bob"]);
    served.exports.add("theirs", disk(MIB, true), both).unwrap();
    let [alice, bob] = ["alice", "bob"].map(|name| certified(&authority, Some(name), name));
    let mut hers = encrypted(&served, &authority, Some(&alice));
    let mut his = encrypted(&served, &authority, Some(&bob));
    hers.go("theirs").unwrap();
    his.go("theirs").unwrap();
    served.exports.allow("theirs", of(&["alice"])).unwrap();
    let clients = &served.exports.list()[1].clients;
    assert_eq!(clients.len(), 1, "when it returns they are gone");
    assert!(his.is_closed());
    hers.write(0, &[1; 512]).unwrap();
    let mut again = encrypted(&served, &authority, Some(&bob));
    let (error, why) = again.go("theirs").unwrap_err();
    assert_eq!(error, reply::ERR_UNKNOWN);
    assert_eq!(
        why,
        "there is no export \"theirs\", or client \"bob\" may not open it"
    );
    assert!(
        again
            .go("nothing")
            .unwrap_err()
            .1
            .contains("client \"bob\" may not open it")
    );
    served.exports.allow("theirs", Access::Everybody).unwrap();
    again.go("theirs").unwrap();
}

#[test]
fn who_has_no_certificate_is_called_by_where_it_is() {
    let served = support::serve(disk(MIB, true));
    let of = |name: &str| Access::Identities(vec![name.into()]);
    served.exports.allow("disk", of("network")).unwrap();
    assert_eq!(greet(&served).go("disk").unwrap_err().0, reply::ERR_UNKNOWN);
    served.exports.allow("disk", of("local")).unwrap();
    greet(&served).go("disk").unwrap();
}

#[test]
fn each_handshake_asks_whether_there_are_new_certificates() {
    let (before, after) = (authority(), authority());
    let served = server(&before, false, true);
    let mut old = encrypted(&served, &before, None);
    old.go("disk").unwrap();
    let (own, key) = certified(&after, None, "server");
    let (own, key) = (own.pem(), key.serialize_pem());
    let renewed = Tls::new(own.as_bytes(), key.as_bytes(), None, true).unwrap();
    let renewed = std::sync::Mutex::new(Some(renewed));
    let renewal = Box::new(move || renewed.lock().unwrap().take());
    served.server.renew_tls(renewal);
    for _ in 0..2 {
        let mut new = encrypted(&served, &after, None);
        new.go("disk").unwrap();
    }
    assert_eq!(old.read(0, 10).unwrap(), [0; 10]);
}

#[test]
fn a_name_in_letters_that_nobody_reads_is_no_name() {
    let authority = authority();
    let served = server(&authority, true, true);
    let mut parameters = CertificateParams::default();
    let name = DnValue::TeletexString("alice".try_into().unwrap());
    parameters.distinguished_name.push(DnType::CommonName, name);
    let key = KeyPair::generate().unwrap();
    let own = (parameters.signed_by(&key, &authority).unwrap(), key);
    let mut wire = encrypted(&served, &authority, Some(&own));
    let (error, why) = wire.go("disk").unwrap_err();
    assert_eq!(error, reply::ERR_POLICY);
    assert!(why.contains("no UTF-8"), "{why}");
}

#[test]
fn a_client_without_a_certificate_or_with_a_name_of_ours_is_not_served() {
    let ours = authority();
    let served = server(&ours, true, true);
    let strange = certified(&authority(), Some("alice"), "other");
    for own in [None, Some(&strange)] {
        let mut wire = encrypted(&served, &ours, own);
        let request = [&tmem_nbd::protocol::OPTION_MAGIC.to_be_bytes()[..], &[0; 8]].concat();
        let _ = wire.stream.write_all(&request);
        assert!(wire.is_closed());
    }
    let local = certified(&ours, Some("local"), "local");
    let mut wire = encrypted(&served, &ours, Some(&local));
    let (error, why) = wire.go("disk").unwrap_err();
    assert_eq!(error, reply::ERR_POLICY);
    assert!(why.contains("\"local\""), "{why}");
}

#[test]
fn what_is_no_certificate_or_not_its_key_is_refused_in_words() {
    let authority = authority();
    let (own, key) = certified(&authority, None, "server");
    let (_, other) = certified(&authority, None, "server");
    let (own, key, other) = (own.pem(), key.serialize_pem(), other.serialize_pem());
    let refused = |chain: &str, key: &str, clients: Option<&[u8]>| {
        Tls::new(chain.as_bytes(), key.as_bytes(), clients, true).unwrap_err()
    };
    assert!(refused("", &key, None).starts_with("the certificate: there is none"));
    assert!(refused(&own, "nonsense", None).starts_with("the key:"));
    assert!(refused(&own, &other, None).starts_with("the certificate and its key:"));
    assert!(refused(&own, &key, Some(b"")).starts_with("the clients' authority:"));
}
