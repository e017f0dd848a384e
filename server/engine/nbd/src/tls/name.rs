//! The name in a client's certificate: its common name, else its first DNS name, else its first URI.
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
/// 2.5.4.3 and 2.5.29.17.
const COMMON_NAME: &[u8] = &[0x55, 0x04, 0x03];
const OTHER_NAMES: &[u8] = &[0x55, 0x1d, 0x11];

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

/// The name; in words what is wrong if there is none that can be used.
pub fn of_certificate(der: &[u8]) -> Result<String, String> {
    let (tag, found) =
        find(der).ok_or("the client's certificate has no common name, DNS name or URI")?;
    if ![DNS, URI].contains(&tag) && !STRINGS.contains(&tag) {
        return Err(
            "the name in the client's certificate is no UTF-8, printable or IA5 string".into(),
        );
    }
    let name = std::str::from_utf8(found)
        .map_err(|_| "the name in the client's certificate is not UTF-8".to_owned())?;
    let fit = name.len() <= MOST && !name.chars().any(char::is_control);
    if !fit || ["local", "network"].contains(&name) {
        return Err(format!(
            "the name in the client's certificate is {name:?}, which is no name for a client"
        ));
    }
    Ok(name.into())
}

/// The name and its tag.
fn find(der: &[u8]) -> Option<(u8, &[u8])> {
    let mut fields = Der(der).inside(SEQUENCE)?.inside(SEQUENCE)?;
    let first = fields.clone().next()?;
    if first.0 == VERSION {
        fields.next();
    }
    // Serial number, algorithm, issuer, validity.
    let (_, subject) = fields.nth(4)?;
    common_name(subject).or_else(|| other_name(&mut fields))
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

fn other_name<'d>(fields: &mut Der<'d>) -> Option<(u8, &'d [u8])> {
    let extensions = fields.inside(EXTENSIONS)?.inside(SEQUENCE)?;
    let names = extensions.into_iter().find_map(|(_, extension)| {
        let mut parts = Der(extension);
        let is_names = parts.next()? == (OBJECT, OTHER_NAMES);
        is_names.then(|| parts.inside(OCTETS)?.inside(SEQUENCE))?
    })?;
    let of = |tag| {
        let mut names = names.clone();
        names.find(|(its, _)| *its == tag)
    };
    of(DNS).or_else(|| of(URI))
}
