//! Which part of the kernel takes how much room.
//!
//! Summed over the linked objects by their directory, as `size` reports them:
//! symbols alone would miss strings and tables, and a link map is 100 MB.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::num::NonZeroUsize;
use std::ops::AddAssign;

/// Bytes of one object or of many.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Size {
    /// Code and constants.
    pub text: u64,
    /// Initialised data.
    pub data: u64,
    /// Zeroed data: in memory only.
    pub bss: u64,
}

impl Size {
    fn in_file(self) -> u64 {
        self.text + self.data
    }
}

impl AddAssign for Size {
    fn add_assign(&mut self, other: Self) {
        self.text += other.text;
        self.data += other.data;
        self.bss += other.bss;
    }
}

/// The objects of a listing by `size` (Berkeley format), with their paths.
#[must_use]
pub fn parse(listing: &str) -> Vec<(String, Size)> {
    listing.lines().filter_map(parse_line).collect()
}

/// `   text    data     bss     dec     hex filename`.
fn parse_line(line: &str) -> Option<(String, Size)> {
    let mut fields = line.split_whitespace();
    let mut number = || fields.next()?.parse().ok();
    let size = Size {
        text: number()?,
        data: number()?,
        bss: number()?,
    };
    let path = fields.nth(2)?;
    Some((path.to_owned(), size))
}

/// The `top` largest directories of at most `depth` levels, and the sum of all.
#[must_use]
pub fn table(objects: &[(String, Size)], depth: NonZeroUsize, top: usize) -> String {
    let mut groups: BTreeMap<String, Size> = BTreeMap::new();
    let mut total = Size::default();
    for (path, size) in objects {
        *groups.entry(directory(path, depth)).or_default() += *size;
        total += *size;
    }
    let mut sorted: Vec<(String, Size)> = groups.into_iter().collect();
    sorted.sort_by_key(|(_, size)| std::cmp::Reverse(size.in_file()));
    let mut text = String::from("   text KB    data KB     bss KB  subsystem\n");
    let mut row = |size: &Size, name: &str| {
        let _ = writeln!(
            text,
            "{:>10} {:>10} {:>10}  {name}",
            kilobytes(size.text),
            kilobytes(size.data),
            kilobytes(size.bss)
        );
    };
    for (name, size) in sorted.iter().take(top) {
        row(size, name);
    }
    if let Some(rest) = sorted.get(top..).filter(|rest| !rest.is_empty()) {
        let mut sum = Size::default();
        rest.iter().for_each(|(_, size)| sum += *size);
        row(&sum, &format!("{} more", rest.len()));
    }
    row(&total, &format!("all {} objects", objects.len()));
    text
}

/// The first `depth` directories of `path`; the file's name never counts.
fn directory(path: &str, depth: NonZeroUsize) -> String {
    let parts: Vec<&str> = path.split('/').collect();
    let directories = parts.len().saturating_sub(1).min(depth.get());
    match directories {
        0 => path.to_owned(),
        _ => parts[..directories].join("/"),
    }
}

fn kilobytes(bytes: u64) -> String {
    format!("{}.{}", bytes / 1000, bytes % 1000 / 100)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LISTING: &str = "   text\t   data\t    bss\t    dec\t    hex\tfilename\n\
        \x20  1000\t    200\t     50\t   1250\t    4e2\tnet/ipv4/tcp.o\n\
        \x20   500\t      0\t      0\t    500\t    1f4\tnet/socket.o\n\
        \x20  9000\t     10\t      0\t   9010\t   2332\tmm/slub.o\n";

    fn depth(levels: usize) -> NonZeroUsize {
        NonZeroUsize::new(levels).unwrap()
    }

    #[test]
    fn table_sums_directories_largest_first() {
        assert_eq!(
            table(&parse(LISTING), depth(1), 9),
            "   text KB    data KB     bss KB  subsystem\n\
             \x20      9.0        0.0        0.0  mm\n\
             \x20      1.5        0.2        0.0  net\n\
             \x20     10.5        0.2        0.0  all 3 objects\n"
        );
    }

    #[test]
    fn table_goes_as_deep_as_asked_and_sums_what_it_leaves_out() {
        let text = table(&parse(LISTING), depth(2), 1);
        assert!(text.contains("2 more"), "{text}");
        let text = table(&parse(LISTING), depth(2), 9);
        assert!(
            text.contains("net/ipv4\n") && text.contains("net\n"),
            "{text}"
        );
    }

    #[test]
    fn parse_skips_what_is_no_object() {
        assert_eq!(parse("   text data bss dec hex filename\n\n"), []);
    }
}
