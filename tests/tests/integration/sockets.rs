//! Unix sockets of the host in a container.

use std::fs::{self, Permissions};
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use tests::DEBIAN;
use tests::bundle::Bundle;

/// Sends a text of its own over each of 100 connections at once, ends its
/// side, and reads the answer to its end.
const CLIENT: &str = r#"
use strict; use IO::Socket::UNIX;
my $count = shift @ARGV; my $size = shift @ARGV;
my @children;
for my $n (1..$count) {
    my $pid = fork // die;
    if ($pid) { push @children, $pid; next }
    my $socket = IO::Socket::UNIX->new(Peer => "/run/host.sock") or die "connect: $!";
    my $text = "$n " . ("x" x $size) . "\n";
    print $socket $text; $socket->flush; shutdown($socket, 1);
    local $/; my $answer = <$socket>;
    exit($answer eq "got " . length($text) . " $n\n" ? 0 : 1);
}
my $bad = 0;
for (@children) { waitpid($_, 0); $bad++ if $? }
print "bad $bad\n";
"#;

/// Answers each connection when its other side has ended.
fn serve(listener: UnixListener) -> Arc<AtomicUsize> {
    let served = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&served);
    thread::spawn(move || {
        for connection in listener.incoming() {
            let count = Arc::clone(&count);
            thread::spawn(move || {
                let mut connection = connection.unwrap();
                let mut text = String::new();
                connection.read_to_string(&mut text).unwrap();
                let number = text.split(' ').next().unwrap();
                writeln!(connection, "got {} {number}", text.len()).unwrap();
                count.fetch_add(1, Ordering::Relaxed);
            });
        }
    });
    served
}

#[test]
fn hundred_connections_pass_at_once_with_half_close() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("server.sock");
    let served = serve(UnixListener::bind(&path).unwrap());
    let mut bundle = Bundle::on(Path::new(DEBIAN), &["perl", "-e", CLIENT, "100", "70000"]);
    bundle.bind(&path, "/run/host.sock", &["rbind", "rprivate"]);
    assert_eq!(bundle.output(), "bad 0\n");
    assert_eq!(served.load(Ordering::Relaxed), 100);
}

#[test]
fn sockets_in_a_volume_work_too() {
    let directory = tempfile::tempdir().unwrap();
    serve(UnixListener::bind(directory.path().join("host.sock")).unwrap());
    let client = CLIENT.replace("/run/host.sock", "/volume/host.sock");
    let mut bundle = Bundle::on(Path::new(DEBIAN), &["perl", "-e", &client, "3", "10"]);
    bundle.bind(directory.path(), "/volume", &["rbind", "ro"]);
    assert_eq!(bundle.output(), "bad 0\n");
}

#[test]
fn socket_without_server_refuses() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("server.sock");
    drop(UnixListener::bind(&path).unwrap());
    let script = r#"use IO::Socket::UNIX;
        my $socket = IO::Socket::UNIX->new(Peer => "/run/host.sock");
        print !$socket ? "refused" : defined(scalar <$socket>) ? "served" : "closed";"#;
    let mut bundle = Bundle::on(Path::new(DEBIAN), &["perl", "-e", script]);
    bundle.bind(&path, "/run/host.sock", &["bind"]);
    let output = bundle.output();
    assert!(["refused", "closed"].contains(&&*output), "{output}");
}

#[test]
fn permissions_of_the_socket_count() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("server.sock");
    serve(UnixListener::bind(&path).unwrap());
    fs::set_permissions(&path, Permissions::from_mode(0o640)).unwrap();
    std::os::unix::fs::chown(&path, Some(7), Some(8)).unwrap();
    let script = r#"use IO::Socket::UNIX; my @s = stat "/run/host.sock";
        printf "%o %d %d ", $s[2], $s[4], $s[5];
        $) = "9 9"; $> = 9;
        IO::Socket::UNIX->new(Peer => "/run/host.sock") and print "connected" or print "$!";"#;
    let mut bundle = Bundle::on(Path::new(DEBIAN), &["perl", "-e", script]);
    for set in ["bounding", "effective", "permitted"] {
        bundle.config["process"]["capabilities"][set] =
            serde_json::json!(["CAP_SETUID", "CAP_SETGID"]);
    }
    bundle.bind(&path, "/run/host.sock", &["bind"]);
    assert_eq!(bundle.output(), "140640 7 8 Permission denied");
}
