//! What a program was told is written is there: after reading it back, after
//! the machine's sudden death, on the host and in another machine.
//!
//! These tests take minutes: `tests/integration` boots a machine for them
//! alone.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;
use tests::bundle::{Bundle, Running, succeed};
use tests::{Outcome, WORKBENCH};

/// On the machine's disk, where there is room.
fn volume() -> TempDir {
    tempfile::tempdir_in("/srv").unwrap()
}

/// A bundle with the databases, two processors and `memory` MiB, and `volume`
/// as `/volume`.
fn workbench(memory: u64, volume: &Path) -> Bundle {
    let mut bundle = Bundle::overlay(WORKBENCH, &[]);
    bundle.limit(memory, 2);
    bundle.bind(volume, "/volume", &["rbind", "rw"]);
    bundle
}

fn said(outcome: Outcome) -> String {
    assert_eq!(outcome.status, 0, "{outcome:?}");
    outcome.stdout
}

/// Runs fio's jobs in `directory` by `runtime`; asserts that none failed.
/// Each must have read and written so many bytes.
fn fio(bundle: &mut Bundle, runtime: &str, directory: &str, options: &str, least: (u64, u64)) {
    let jobs = include_str!("durability/jobs.fio");
    fs::write(bundle.path("root/jobs.fio"), jobs).unwrap();
    let script = format!(
        "fio --eta=never --output=/tmp/report --output-format=json --directory={directory} {options} /root/jobs.fio
         status=$?; cat /tmp/report; exit $status"
    );
    bundle.program(&["bash", "-c", &script]);
    let text = said(bundle.run_by(runtime));
    let json = text.find('{').map_or("", |at| &text[at..]);
    let report: Value = serde_json::from_str(json).expect(&text);
    let jobs = report["jobs"].as_array().unwrap();
    assert_eq!(jobs.len(), 8, "{text}");
    for job in jobs {
        assert_eq!(job["error"], 0, "{job}");
        let bytes = |side: &str| job[side]["io_bytes"].as_u64().unwrap();
        // Jobs that only write read to verify.
        let done = [("read", least.0), ("write", least.1)];
        assert!(
            done.iter().all(|(side, least)| bytes(side) >= *least),
            "{job}"
        );
    }
}

/// What was written is right while it is being written, for whoever reads it
/// on the host, and in another machine.
fn fio_everywhere(directory: &str, seconds: u32) {
    let volume = volume();
    let mut bundle = workbench(768, volume.path());
    fs::create_dir(bundle.path("data")).unwrap();
    let mut run =
        |runtime, options: &str, least| fio(&mut bundle, runtime, directory, options, least);
    let timed = format!("--time_based --runtime={seconds} --verify_backlog=32");
    run("nerite", &timed, (1 << 20, 1 << 20));
    run("nerite", "--do_verify=0", (0, 1 << 20));
    run("runc", "--verify_only", (1 << 20, 0));
    run("nerite", "--verify_only", (1 << 20, 0));
}

#[test]
fn fio_finds_on_a_volume_what_it_wrote() {
    fio_everywhere("/volume", 60);
}

#[test]
fn fio_finds_in_a_root_what_it_wrote() {
    fio_everywhere("/data", 20);
}

/// Lines that say what was committed, until `enough` of them have come.
fn acknowledged(running: &mut Running, enough: impl Fn(&str, usize) -> bool) -> BTreeSet<String> {
    let mut rows = BTreeSet::new();
    loop {
        let line = running.line().expect("the program ended by itself");
        let done = enough(&line, rows.len());
        rows.insert(line);
        if done {
            return rows;
        }
    }
}

/// Adds what was said before the end.
fn rest(running: &mut Running, rows: &mut BTreeSet<String>) {
    while let Some(line) = running.line() {
        rows.insert(line);
    }
}

/// Asserts that a database is whole and has all `rows`, and no more than its
/// writers can have had in hand at so many `deaths`.
fn sqlite_has(bundle: &mut Bundle, database: &str, rows: &BTreeSet<String>, deaths: usize) {
    bundle.program(&["python3", "/root/sqlite.py", "look", database]);
    let text = said(bundle.run_by("runc"));
    let mut lines = text.lines();
    assert_eq!(lines.next(), Some("ok"), "{text}");
    let found: BTreeSet<&str> = lines.collect();
    assert!(found.contains("torn 0"), "{text}");
    let lost: Vec<_> = rows.iter().filter(|row| !found.contains(&***row)).collect();
    assert!(lost.is_empty(), "lost {lost:?} of {}", rows.len());
    assert!(
        found.len() <= rows.len() + 1 + 4 * deaths,
        "{} of {}",
        found.len(),
        rows.len()
    );
}

fn sqlite_survives(journal: &str) {
    const ROWS: usize = 200;
    let volume = volume();
    let mut bundle = workbench(256, volume.path());
    let script = include_str!("durability/sqlite.py");
    fs::write(bundle.path("root/sqlite.py"), script).unwrap();
    let work = ["python3", "/root/sqlite.py", "work", "/volume/db", journal];

    bundle.program(&work);
    let mut running = bundle.start();
    let mut rows = acknowledged(&mut running, |_, count| count >= ROWS);
    running.kill_machine();
    rest(&mut running, &mut rows);
    running.wait();
    // A copy, so that the host does not recover what a guest is to recover.
    let copy = volume.path().join("copy");
    fs::create_dir(&copy).unwrap();
    succeed(
        Command::new("sh")
            .arg("-c")
            .arg(format!("cp {0}/db* {0}/copy/", volume.path().display())),
    );
    sqlite_has(&mut bundle, "/volume/copy/db", &rows, 1);

    bundle.program(&work);
    let mut running = bundle.start();
    rows.extend(acknowledged(&mut running, |_, count| count >= ROWS));
    running.kill_keeper();
    rest(&mut running, &mut rows);
    running.wait();
    sqlite_has(&mut bundle, "/volume/db", &rows, 2);
}

#[test]
fn sqlite_with_a_rollback_journal_survives_the_machine() {
    sqlite_survives("delete");
}

#[test]
fn sqlite_with_a_shared_log_survives_the_machine() {
    sqlite_survives("wal");
}

/// Asserts that what `look` said is a whole database with all `rows`.
fn postgres_has(text: &str, rows: &BTreeSet<String>) {
    let found: BTreeSet<&str> = text.lines().collect();
    let lost: Vec<_> = rows.iter().filter(|row| !found.contains(&***row)).collect();
    assert!(lost.is_empty(), "lost {lost:?} of {}: {text}", rows.len());
    // Each transaction adds the same to four tables.
    let sums: BTreeSet<_> = found
        .iter()
        .filter(|line| line.starts_with("sum "))
        .collect();
    assert_eq!(sums.len(), 1, "{text}");
    assert!(text.contains("Bad checksums:  0"), "{text}");
}

#[test]
fn postgresql_survives_the_machine() {
    const SECONDS: u64 = 60;
    const DEATH: u64 = 40;
    let volume = volume();
    let mut bundle = workbench(1024, volume.path());
    let script = include_str!("durability/postgres.sh");
    fs::write(bundle.path("root/postgres.sh"), script).unwrap();
    // The user `postgres` reads it there.
    succeed(Command::new("chmod").arg("755").arg(bundle.path("root")));
    let ask = |bundle: &mut Bundle, runtime: &str, words: &[&str]| {
        bundle.program(&[&["bash", "/root/postgres.sh"], words].concat());
        said(bundle.run_by(runtime))
    };

    ask(&mut bundle, "nerite", &["make"]);
    bundle.program(&["bash", "/root/postgres.sh", "use", &SECONDS.to_string()]);
    let mut running = bundle.start();
    let mut said = acknowledged(&mut running, |line, _| {
        let second = line.strip_prefix("progress: ").and_then(|rest| {
            let (seconds, _) = rest.split_once('.')?;
            seconds.parse().ok()
        });
        second.is_some_and(|second: u64| second >= DEATH)
    });
    running.kill_machine();
    rest(&mut running, &mut said);
    running.wait();
    let rows = |said: &BTreeSet<String>| -> BTreeSet<String> {
        said.iter()
            .filter(|line| line.starts_with("row "))
            .cloned()
            .collect()
    };
    let mut acknowledged = rows(&said);
    assert!(acknowledged.len() > 20, "{said:?}");

    // Recovered in another machine, and used once more.
    let text = ask(&mut bundle, "nerite", &["look"]);
    assert!(text.contains("automatic recovery in progress"), "{text}");
    postgres_has(&text, &acknowledged);
    let rest = (SECONDS - DEATH).to_string();
    let text = ask(&mut bundle, "nerite", &["use", &rest]);
    acknowledged.extend(rows(&text.lines().map(str::to_owned).collect()));
    // And on the host.
    let text = ask(&mut bundle, "runc", &["look"]);
    assert!(!text.contains("recovery"), "{text}");
    postgres_has(&text, &acknowledged);
}
