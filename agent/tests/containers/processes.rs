//! Who a process is and what it may do; programs that cannot be started.

use protocol::oci;
use ttrpc::Code;

use crate::support::{Guest, process, refusal, shell, spec, unique};

const STATUS: &str = "grep -E '^(Uid|Gid|Groups|NoNewPrivs|Cap...|Umask):' /proc/self/status";

fn status(text: &str, key: &str) -> String {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
    line.unwrap()
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
}

#[tokio::test(flavor = "current_thread")]
#[ignore = "needs root: runs in the machine"]
async fn process_without_capabilities_has_none() {
    let outcome = Guest::start().await.run(&shell(STATUS), b"").await.unwrap();
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(status(&outcome.stdout, set), "0000000000000000", "{set}");
    }
    assert_eq!(status(&outcome.stdout, "NoNewPrivs"), "0");
    assert_eq!(status(&outcome.stdout, "Umask"), "0022");
}

#[tokio::test(flavor = "current_thread")]
#[ignore = "needs root: runs in the machine"]
async fn all_five_sets_are_as_configured() {
    let caps = |names: &[&str]| {
        names
            .iter()
            .map(|&name| name.into())
            .collect::<Vec<String>>()
    };
    let mut spec = shell(STATUS);
    let process = spec.process.as_mut().unwrap();
    process.user = oci::User {
        uid: 1000,
        gid: 1001,
        umask: Some(0o077),
        additional_gids: vec![5, 7],
        username: None,
    };
    process.no_new_privileges = true;
    process.capabilities = Some(oci::Capabilities {
        bounding: caps(&["CAP_KILL", "CAP_CHOWN", "CAP_SYS_ADMIN"]),
        permitted: caps(&["CAP_KILL", "CAP_CHOWN"]),
        inheritable: caps(&["CAP_KILL"]),
        effective: caps(&["CAP_KILL"]),
        ambient: caps(&["CAP_KILL"]),
    });
    let text = Guest::start().await.run(&spec, b"").await.unwrap().stdout;
    // Over execve a user other than root keeps the ambient set.
    assert_eq!(status(&text, "CapBnd"), "0000000000200021");
    for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
        assert_eq!(status(&text, set), "0000000000000020", "{set}");
    }
    assert_eq!(status(&text, "Uid"), "1000 1000 1000 1000");
    assert_eq!(status(&text, "Gid"), "1001 1001 1001 1001");
    assert_eq!(status(&text, "Groups"), "5 7");
    assert_eq!(status(&text, "NoNewPrivs"), "1");
    assert_eq!(status(&text, "Umask"), "0077");
}

#[tokio::test(flavor = "current_thread")]
#[ignore = "needs root: runs in the machine"]
async fn exec_has_its_own_rights_not_the_containers() {
    let guest = Guest::start().await;
    let id = unique("rights");
    let mut container = shell("sleep 100");
    let all = |names: &[&str]| {
        let names: Vec<String> = names.iter().map(|&name| name.into()).collect();
        oci::Capabilities {
            bounding: names.clone(),
            permitted: names.clone(),
            effective: names,
            ..oci::Capabilities::default()
        }
    };
    container.process.as_mut().unwrap().capabilities = Some(all(&["CAP_CHOWN", "CAP_SYS_ADMIN"]));
    let _streams = guest.create(&id, &container).await.unwrap();
    guest.start_process(&id, "").await.unwrap();
    let text = guest.exec(&id, &process(STATUS), b"").await.unwrap().stdout;
    assert_eq!(status(&text, "CapBnd"), "0000000000000000");
    let mut privileged = process(STATUS);
    privileged.capabilities = Some(all(&["CAP_NET_ADMIN"]));
    let text = guest.exec(&id, &privileged, b"").await.unwrap().stdout;
    assert_eq!(status(&text, "CapEff"), "0000000000001000");
}

#[tokio::test(flavor = "current_thread")]
#[ignore = "needs root: runs in the machine"]
async fn users_are_found_by_name_in_the_container() {
    let guest = Guest::start().await;
    let mut spec = shell("id; echo $HOME");
    spec.process.as_mut().unwrap().user.username = Some("app".into());
    let outcome = guest.run(&spec, b"").await.unwrap();
    let home = outcome.stdout.lines().last().unwrap();
    assert!(outcome.stdout.starts_with("uid=1000(app) "), "{outcome:?}");
    assert!(home.starts_with("/home/") || home == "/", "{home}");

    spec.process.as_mut().unwrap().user.username = Some("nobody-here".into());
    let (code, sentence) = refusal(guest.run(&spec, b"").await);
    assert_eq!(code, Code::NOT_FOUND);
    assert!(sentence.contains("\"nobody-here\""), "{sentence}");
}

#[tokio::test(flavor = "current_thread")]
#[ignore = "needs root: runs in the machine"]
async fn environment_directory_and_limits_are_set() {
    let mut spec = shell("pwd; echo $A; ulimit -n; ulimit -Hn; cat /proc/self/oom_score_adj; tty");
    let process = spec.process.as_mut().unwrap();
    process.cwd = "/new/work/dir".into();
    process.env.push("A=b c".into());
    process.rlimits = vec![oci::Rlimit {
        kind: "RLIMIT_NOFILE".into(),
        hard: 2000,
        soft: 500,
    }];
    process.oom_score_adj = Some(77);
    let outcome = Guest::start().await.run(&spec, b"").await.unwrap();
    assert_eq!(
        outcome.stdout,
        "/new/work/dir\nb c\n500\n2000\n77\nnot a tty\n"
    );
}

#[tokio::test(flavor = "current_thread")]
#[ignore = "needs root: runs in the machine"]
async fn process_leads_its_own_session_with_default_signals() {
    let script =
        "awk '{print ($5 == $1) ($6 == $1)}' /proc/1/stat; grep -E '^Sig(Blk|Ign):' /proc/1/status";
    let outcome = Guest::start().await.run(&shell(script), b"").await.unwrap();
    let text: Vec<&str> = outcome.stdout.split_whitespace().collect();
    assert_eq!(text[..4], ["11", "SigBlk:", "0000000000000000", "SigIgn:"]);
    // The agent itself ignores SIGPIPE; the rest is what the test was given.
    let ignored = u64::from_str_radix(text[4], 16).unwrap();
    assert_eq!(ignored & (1 << 12), 0);
}

#[tokio::test(flavor = "current_thread")]
#[ignore = "needs root: runs in the machine"]
async fn working_directory_cannot_be_outside() {
    let guest = Guest::start().await;
    let id = unique("cwd");
    let _streams = guest.create(&id, &shell("sleep 100")).await.unwrap();
    guest.start_process(&id, "").await.unwrap();
    for number in 0..16 {
        let mut exec = process("pwd");
        exec.cwd = format!("/proc/self/fd/{number}");
        let (_, sentence) = refusal(guest.exec(&id, &exec, b"").await);
        assert!(
            sentence.contains("working directory"),
            "{number}: {sentence}"
        );
    }
}

#[tokio::test(flavor = "current_thread")]
#[ignore = "needs root: runs in the machine"]
async fn programs_that_cannot_run_are_told_apart() {
    let guest = Guest::start().await;
    for (program, code, words) in [
        (
            "nothing",
            Code::NOT_FOUND,
            "exec \"nothing\": executable file not found in $PATH",
        ),
        (
            "/nothing",
            Code::NOT_FOUND,
            "exec \"/nothing\": no such file or directory",
        ),
        (
            "/etc/passwd",
            Code::PERMISSION_DENIED,
            "exec \"/etc/passwd\": permission denied",
        ),
        (
            "/etc",
            Code::PERMISSION_DENIED,
            "exec \"/etc\": is a directory",
        ),
        (
            "etc",
            Code::NOT_FOUND,
            "exec \"etc\": executable file not found in $PATH",
        ),
        (
            "/dev/null/x",
            Code::NOT_FOUND,
            "exec \"/dev/null/x\": no such file or directory",
        ),
    ] {
        let mut spec = spec(&[program]);
        spec.process.as_mut().unwrap().env = vec!["PATH=/bin:/".into()];
        assert_eq!(refusal(guest.run(&spec, b"").await), (code, words.into()));
    }
}

#[tokio::test(flavor = "current_thread")]
#[ignore = "needs root: runs in the machine"]
async fn exec_that_cannot_run_leaves_the_container_alone() {
    let guest = Guest::start().await;
    let id = unique("format");
    let _streams = guest.create(&id, &shell("sleep 100")).await.unwrap();
    guest.start_process(&id, "").await.unwrap();
    let script = "printf '\\177ELFxxxx' > /tmp/bad; chmod 755 /tmp/bad";
    assert_eq!(
        guest.exec(&id, &process(script), b"").await.unwrap().status,
        0
    );
    let mut bad = process("");
    bad.args = vec!["/tmp/bad".into()];
    let (code, sentence) = refusal(guest.exec(&id, &bad, b"").await);
    assert_eq!(code, Code::PERMISSION_DENIED);
    assert!(sentence.ends_with("exec format error"), "{sentence}");
    assert_eq!(
        guest
            .exec(&id, &process("exit 9"), b"")
            .await
            .unwrap()
            .status,
        9
    );
}
