//! The name in a client's certificate: the one rule of all fronts, which the threat model states.
//!
//! DNS names and URIs count before the common name: it is used where they agree with it, or where there are none. People,
//! hosts and URIs cannot have one another's names: a DNS name without a dot counts only where it is the common name too,
//! and a common name that reads as a URI not at all.
//!
//! The certificate has been verified when its name is asked for. All the same no length in it is believed.

/// Most bytes of a name.
const MOST: usize = 64;

const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const OBJECT: u8 = 0x06;
const OCTETS: u8 = 0x04;
const VERSION: u8 = 0xa0;
const EXTENSIONS: u8 = 0xa3;
const DNS: u8 = 0x82;
const URI: u8 = 0x86;
/// UTF-8, printable and IA5 strings.
const STRINGS: [u8; 3] = [0x0c, 0x13, 0x16];
const BOOLEAN: u8 = 0x01;
/// 2.5.4.3, 2.5.29.17 and 2.5.29.19.
const COMMON_NAME: &[u8] = &[0x55, 0x04, 0x03];
const OTHER_NAMES: &[u8] = &[0x55, 0x1d, 0x11];
const CONSTRAINTS: &[u8] = &[0x55, 0x1d, 0x13];

/// Elements one after the other: tag and contents.
#[derive(Clone)]
struct Der<'d>(&'d [u8]);

impl<'d> Iterator for Der<'d> {
    type Item = (u8, &'d [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let (&tag, rest) = self.0.split_first()?;
        let (&first, rest) = rest.split_first()?;
        let (length, rest) = match first {
            0..=0x7f => (usize::from(first), rest),
            0x81..=0x84 => {
                let (bytes, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
                let length = bytes.iter().fold(0, |n, byte| n << 8 | usize::from(*byte));
                (length, rest)
            }
            _ => return None,
        };
        let (contents, rest) = rest.split_at_checked(length)?;
        self.0 = rest;
        Some((tag, contents))
    }
}

impl<'d> Der<'d> {
    fn inside(&mut self, tag: u8) -> Option<Der<'d>> {
        self.find(|element| element.0 == tag)
            .map(|element| Der(element.1))
    }
}

/// What a certificate says of whom it is for.
struct Said<'d> {
    common: Option<&'d str>,
    dns: Vec<&'d str>,
    uris: Vec<&'d str>,
}

/// The name; in words what is wrong if there is none that can be used.
pub fn of_certificate(der: &[u8]) -> Result<String, String> {
    let name = said(der)?.name()?;
    check(name)?;
    Ok(name.into())
}

/// Whether a client may have a name; in words why not.
fn check(name: &str) -> Result<(), String> {
    let why = if name.len() > MOST {
        "is longer than 64 bytes"
    } else if !name.chars().all(is_printable) || name.trim() != name {
        "has characters that do not show"
    } else if name.contains('*') {
        "stands for several"
    } else if ["local", "network"].contains(&name) {
        "stands for an address"
    } else {
        return Ok(());
    };
    Err(format!(
        "the client's certificate says {name:?}, which {why}"
    ))
}

/// Neither control and format characters (such as those that change the direction of text, or have no width) nor spaces
/// but the plain one, nor what is not assigned.
fn is_printable(c: char) -> bool {
    // What the standard library has no public word for: it escapes what cannot be printed, and quotes. At the start of a
    // text also marks that combine with the letter before.
    matches!(c, '"' | '\'' | '\\')
        || ['a', c].iter().collect::<String>().escape_debug().count() == 2
}

impl<'d> Said<'d> {
    fn name(&self) -> Result<&'d str, &'static str> {
        let hosts = || self.dns.iter().filter(|name| name.contains('.'));
        let mut others = self.dns.iter().chain(&self.uris);
        if self.dns.is_empty() && self.uris.is_empty() {
            let common = self
                .common
                .ok_or("the client's certificate has no common name, DNS name or URI")?;
            return match reads_as_uri(common) {
                true => Err("the common name in the client's certificate reads as a URI"),
                false => Ok(common),
            };
        }
        let agreed = others.find(|name| Some(**name) == self.common);
        let found = agreed.or(hosts().next()).or(self.uris.first());
        found.copied().ok_or(
            "the client's certificate is for a DNS name without a dot that is not its common name",
        )
    }
}

/// A scheme and a colon.
fn reads_as_uri(name: &str) -> bool {
    let scheme = name.split_once(':').map_or("", |(scheme, _)| scheme);
    let inside = |c: char| c.is_ascii_alphanumeric() || "+-.".contains(c);
    scheme.starts_with(|c: char| c.is_ascii_alphabetic()) && scheme.chars().all(inside)
}

fn said(der: &[u8]) -> Result<Said<'_>, String> {
    let broken = || "the client's certificate cannot be read".to_owned();
    let mut fields = Der(der)
        .inside(SEQUENCE)
        .and_then(|mut whole| whole.inside(SEQUENCE))
        .ok_or_else(broken)?;
    let first = fields.clone().next().ok_or_else(broken)?;
    if first.0 != VERSION {
        return Err("the client's certificate is of an old version".into());
    }
    // Version, serial number, algorithm, issuer, validity.
    let (_, subject) = fields.nth(5).ok_or_else(broken)?;
    let extensions = fields
        .inside(EXTENSIONS)
        .and_then(|mut all| all.inside(SEQUENCE))
        .unwrap_or(Der(&[]));
    if is_authority(&extensions) {
        return Err("the client's certificate is an authority's, which is no client".into());
    }
    let names = other_names(&extensions);
    let of = |tag| {
        let its = names.clone().filter(move |found| found.0 == tag);
        its.map(text).collect::<Result<Vec<_>, _>>()
    };
    Ok(Said {
        common: common_name(subject).map(text).transpose()?,
        dns: of(DNS)?,
        uris: of(URI)?,
    })
}

fn text((tag, found): (u8, &[u8])) -> Result<&str, String> {
    if ![DNS, URI].contains(&tag) && !STRINGS.contains(&tag) {
        return Err(
            "the name in the client's certificate is no UTF-8, printable or IA5 string".into(),
        );
    }
    std::str::from_utf8(found)
        .map_err(|_| "the name in the client's certificate is not UTF-8".to_owned())
}

/// The first common name, unless it is empty: a second one is nobody's.
fn common_name(subject: &[u8]) -> Option<(u8, &[u8])> {
    let first = Der(subject)
        .filter(|(tag, _)| *tag == SET)
        .flat_map(|(_, set)| Der(set))
        .find_map(|(_, pair)| {
            let mut pair = Der(pair);
            let kind = pair.next()?;
            let (tag, name) = pair.next()?;
            (kind == (OBJECT, COMMON_NAME)).then_some((tag, name))
        });
    first.filter(|(_, name)| !name.is_empty())
}

/// What is in an extension.
fn extension<'d>(extensions: &Der<'d>, kind: &[u8]) -> Option<Der<'d>> {
    extensions.clone().find_map(|(_, extension)| {
        let mut parts = Der(extension);
        let is_it = parts.next()? == (OBJECT, kind);
        is_it.then(|| parts.inside(OCTETS)?.inside(SEQUENCE))?
    })
}

fn is_authority(extensions: &Der<'_>) -> bool {
    let constraints = extension(extensions, CONSTRAINTS);
    constraints.is_some_and(|mut found| found.any(|(tag, value)| tag == BOOLEAN && value != [0]))
}

fn other_names<'d>(extensions: &Der<'d>) -> Der<'d> {
    extension(extensions, OTHER_NAMES).unwrap_or(Der(&[]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_show_is_in_no_name() {
        for name in [
            "alice",
            "O'Brien \"x\"",
            "\u{e4}",
            "a\u{308}",
            "\u{928}\u{93f}",
        ] {
            assert_eq!(check(name), Ok(()));
        }
        let hidden = [
            "\n",
            "\u{202e}",
            "\u{200b}",
            "\u{2066}",
            "\u{feff}",
            "\u{ad}",
            "\u{a0}",
            "\u{2028}",
            "\u{7f}",
            "\u{0}",
            "\u{e000}",
            "\u{e0041}",
        ];
        for hidden in hidden {
            assert!(check(&format!("a{hidden}b")).is_err(), "{hidden:?}");
        }
        for name in [" alice", "alice ", "*", "*.example", "local", "network"] {
            assert!(check(name).is_err(), "{name:?}");
        }
    }

    #[test]
    fn people_hosts_and_uris_are_told_apart() {
        let name = |common, dns: &[&'static str], uris: &[&'static str]| {
            let (dns, uris) = (dns.to_vec(), uris.to_vec());
            Said { common, dns, uris }.name().ok()
        };
        assert_eq!(name(Some("alice"), &[], &[]), Some("alice"));
        assert_eq!(name(Some("web.example"), &[], &[]), Some("web.example"));
        assert_eq!(name(None, &["web.example"], &[]), Some("web.example"));
        assert_eq!(name(None, &[], &["spiffe://x/y"]), Some("spiffe://x/y"));
        assert_eq!(name(Some("gw"), &["gw"], &[]), Some("gw"));
        assert_eq!(name(Some("b.c"), &["a.c", "b.c"], &["u:1"]), Some("b.c"));
        assert_eq!(
            name(Some("ops"), &["web.example"], &[]),
            Some("web.example")
        );
        assert_eq!(name(Some("ops"), &["web"], &["u:1"]), Some("u:1"));
        assert_eq!(name(None, &["alice"], &[]), None);
        assert_eq!(name(Some("ops"), &["alice"], &[]), None);
        assert_eq!(name(Some("spiffe://x/y"), &[], &[]), None);
        assert_eq!(name(None, &[], &[]), None);
    }
}
