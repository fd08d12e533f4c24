//! `nerite check` where nerite can run.

use tests::run;

#[test]
fn check_succeeds_here_and_reports_hardware_speed() {
    let outcome = run(&["check"]);
    assert_eq!(outcome.status, 0, "{outcome:?}");
    let json = run(&["check", "--json"]);
    assert_eq!(json.status, 0, "{json:?}");
    let report: serde_json::Value = serde_json::from_str(&json.stdout).unwrap();
    assert!(report.is_object(), "{report}");
}
