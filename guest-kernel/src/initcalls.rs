//! What each initialisation function of a boot cost.
//!
//! A kernel that boots with `initcall_debug loglevel=8` prints a line when each
//! such function returns. The sum is not the boot (memory set-up and CPU
//! bring-up come before), but a driver that probes for something absent shows.

use std::fmt::Write;

/// One initcall's return.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Initcall {
    /// The function.
    pub name: String,
    /// How long it ran.
    pub microseconds: u64,
    /// What it returned; negative values are error numbers, often "no device".
    pub returned: i64,
}

/// Every initcall that `log` reports, in its order.
#[must_use]
pub fn parse(log: &str) -> Vec<Initcall> {
    log.lines().filter_map(parse_line).collect()
}

/// `[  0.1] initcall virtio_init+0x0/0x30 returned 0 after 12 usecs`.
fn parse_line(line: &str) -> Option<Initcall> {
    let (_, call) = line.split_once("initcall ")?;
    let (symbol, rest) = call.split_once(" returned ")?;
    let (returned, rest) = rest.split_once(" after ")?;
    let (microseconds, _) = rest.split_once(" usecs")?;
    Some(Initcall {
        name: symbol.split('+').next().unwrap_or(symbol).to_owned(),
        microseconds: microseconds.trim().parse().ok()?,
        returned: returned.trim().parse().ok()?,
    })
}

/// The `top` costliest of `calls` and the sum of all, as a table.
#[must_use]
pub fn table(calls: &[Initcall], top: usize) -> String {
    let total: u64 = calls.iter().map(|call| call.microseconds).sum();
    let mut sorted: Vec<&Initcall> = calls.iter().collect();
    sorted.sort_by(|a, b| {
        b.microseconds
            .cmp(&a.microseconds)
            .then_with(|| a.name.cmp(&b.name))
    });
    let mut text = String::from("     µs  share  initcall\n");
    let mut row = |microseconds: u64, what: &str| {
        let permille = microseconds
            .saturating_mul(1000)
            .checked_div(total)
            .unwrap_or(0);
        let (whole, tenth) = (permille / 10, permille % 10);
        // Writing into a `String` cannot fail.
        let _ = writeln!(text, "{microseconds:>7} {whole:>3}.{tenth}%  {what}");
    };
    for call in sorted.iter().take(top) {
        if call.returned == 0 {
            row(call.microseconds, &call.name);
        } else {
            row(
                call.microseconds,
                &format!("{} (returned {})", call.name, call.returned),
            );
        }
    }
    if let Some(rest) = sorted.get(top..).filter(|rest| !rest.is_empty()) {
        let sum = rest.iter().map(|call| call.microseconds).sum();
        row(sum, &format!("{} more", rest.len()));
    }
    row(total, &format!("all {}", calls.len()));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "[    0.010000] calling  virtio_init+0x0/0x30 @ 1\n\
        [    0.010012] initcall virtio_init+0x0/0x30 returned 0 after 12 usecs\n\
        initcall raid6_select_algo+0x0/0x3c0 returned 0 after 83000 usecs\r\n\
        <7>[    0.2] initcall nobody+0x0/0x10 returned -19 after 3 usecs\n\
        [    0.3] initcall broken\n";

    #[test]
    fn parse_reads_name_cost_and_result_with_any_prefix() {
        let calls = parse(LOG);
        let call = |name: &str, microseconds, returned| Initcall {
            name: name.to_owned(),
            microseconds,
            returned,
        };
        assert_eq!(
            calls,
            [
                call("virtio_init", 12, 0),
                call("raid6_select_algo", 83000, 0),
                call("nobody", 3, -19)
            ]
        );
    }

    #[test]
    fn table_shows_the_costliest_first_and_sums_the_rest() {
        assert_eq!(
            table(&parse(LOG), 1),
            "     µs  share  initcall\n  83000  99.9%  raid6_select_algo\n     15   0.0%  2 more\n  \
             83015 100.0%  all 3\n"
        );
        assert!(table(&parse(LOG), 9).contains("nobody (returned -19)"));
        assert_eq!(
            table(&[], 3),
            "     µs  share  initcall\n      0   0.0%  all 0\n"
        );
    }
}
