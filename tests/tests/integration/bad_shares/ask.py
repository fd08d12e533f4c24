"""What calls answer on the share at /volume: `ask.py CASE`, one line each.
Run once by runc and once by nerite, the lines are the same."""

import errno
import mmap
import os
import socket
import sys
import time

V = "/volume"
MIB = 1 << 20


def say(what, call, *args, **named):
    """The call's result, or the name of its error."""
    try:
        result = call(*args, **named)
        print(what, "ok" if result is None else result)
        return result
    except OSError as error:
        print(what, errno.errorcode[error.errno])
        return None


def put(path, data, flags=os.O_CREAT | os.O_WRONLY, sync=True):
    """Writes all of `data`; bytes written before an error are not said."""
    file = os.open(path, flags, 0o644)
    try:
        while data:
            data = data[os.write(file, data):]
        if sync:
            os.fsync(file)
    finally:
        os.close(file)


def full():
    chunk = b"x" * 65536
    file = os.open(f"{V}/big", os.O_CREAT | os.O_WRONLY, 0o644)

    def fill():
        for _ in range(4096):
            os.write(file, chunk)
        os.fsync(file)

    say("fill", fill)
    say("one more", put, f"{V}/more", chunk)
    say("allocate", os.posix_fallocate, file, 0, 1 << 30)
    say("rename", os.rename, f"{V}/big", f"{V}/renamed")
    os.close(file)
    size = os.stat(f"{V}/renamed").st_size
    print("something was written", size > 0)
    say("remove", os.unlink, f"{V}/renamed")
    say("again", put, f"{V}/more", chunk)


def inodes():
    def create():
        for number in range(10000):
            os.close(os.open(f"{V}/{number}", os.O_CREAT | os.O_EXCL, 0o600))

    say("create", create)
    say("mkdir", os.mkdir, f"{V}/directory")
    say("symlink", os.symlink, "x", f"{V}/link")
    say("mkfifo", os.mkfifo, f"{V}/fifo")
    say("link", os.link, f"{V}/0", f"{V}/twin")


def quota():
    os.setgid(1000)
    os.setuid(1000)
    say("within", put, f"{V}/mine/small", b"x" * 65536)
    say("beyond", put, f"{V}/mine/big", b"x" * (4 * MIB))
    say("files", lambda: [put(f"{V}/mine/{n}", b"") for n in range(100)] and None)
    say("remove", os.unlink, f"{V}/mine/big")


def attributes():
    path = f"{V}/file"
    put(path, b"x")
    say("set", os.setxattr, path, "user.name", b"value")
    say("get", os.getxattr, path, "user.name")
    say("list", os.listxattr, path)
    say("remove", os.removexattr, path, "user.name")
    acl = bytes.fromhex("0200000001000600ffffffff04000400ffffffff20000400ffffffff")
    say("access list", os.setxattr, path, "system.posix_acl_access", acl)
    say("chmod", os.chmod, path, 0o4711)
    say("chown", os.chown, path, 5, 6)
    status = os.stat(path)
    print("status", oct(status.st_mode), status.st_uid, status.st_gid)


def read_only():
    say("read", lambda: open(f"{V}/file").read())
    say("open", os.open, f"{V}/file", os.O_RDWR)
    say("create", os.open, f"{V}/new", os.O_CREAT | os.O_WRONLY)
    say("create what is there", os.open, f"{V}/file", os.O_CREAT | os.O_EXCL | os.O_RDWR)
    say("mkdir", os.mkdir, f"{V}/new")
    say("mkdir what is there", os.mkdir, f"{V}/directory")
    say("remove", os.unlink, f"{V}/file")
    say("rmdir", os.rmdir, f"{V}/directory")
    say("rename", os.rename, f"{V}/file", f"{V}/new")
    say("link", os.link, f"{V}/file", f"{V}/new")
    say("symlink", os.symlink, "x", f"{V}/new")
    say("chmod", os.chmod, f"{V}/file", 0o600)
    say("chown", os.chown, f"{V}/file", 1, 1)
    say("times", os.utime, f"{V}/file", (1, 1))
    say("truncate", os.truncate, f"{V}/file", 0)
    say("attribute", os.setxattr, f"{V}/file", "user.x", b"")
    say("access", os.access, f"{V}/file", os.W_OK)


def denied():
    os.setgroups([])
    os.setgid(1000)
    os.setuid(1000)
    say("read", os.open, f"{V}/secret", os.O_RDONLY)
    say("write", os.open, f"{V}/public", os.O_WRONLY)
    say("truncate", os.truncate, f"{V}/public", 0)
    say("create", os.open, f"{V}/new", os.O_CREAT | os.O_WRONLY)
    say("remove", os.unlink, f"{V}/public")
    say("chmod", os.chmod, f"{V}/public", 0o666)
    say("chown", os.chown, f"{V}/public", 1000, -1)
    say("times", os.utime, f"{V}/public", (1, 1))
    say("touch", os.utime, f"{V}/public")
    say("search", os.stat, f"{V}/closed/file")
    say("list", os.listdir, f"{V}/closed")
    say("sticky remove", os.unlink, f"{V}/sticky/others")
    say("sticky rename", os.rename, f"{V}/sticky/others", f"{V}/sticky/mine")
    say("attribute", os.setxattr, f"{V}/public", "user.x", b"")
    say("trusted", os.setxattr, f"{V}/public", "trusted.x", b"")
    say("device", os.mknod, f"{V}/sticky/null", 0o20666, os.makedev(1, 3))


def names():
    every = bytes(n for n in range(1, 256) if n != ord("/"))
    root = V.encode()
    for start in (0, 1):
        name = (every[start:] + every)[:255]
        say("create", put, root + b"/" + name, b"content")
        say("read", lambda: open(root + b"/" + name, "rb").read())
        print("listed", name in os.listdir(root))
        say("rename", os.rename, root + b"/" + name, root + b"/" + name[::-1])
        print("listed", name[::-1] in os.listdir(root))
    long = "x" * 256
    say("256 create", put, f"{V}/{long}", b"")
    say("256 mkdir", os.mkdir, f"{V}/{long}")
    say("256 stat", os.stat, f"{V}/{long}")
    say("256 rename", os.rename, f"{V}/a", f"{V}/{long}")
    say("256 symlink", os.symlink, "x", f"{V}/{long}")
    say("target 4095", os.symlink, "x" * 4095, f"{V}/target")
    print("read target", len(os.readlink(f"{V}/target")))
    say("target 4096", os.symlink, "x" * 4096, f"{V}/longer")


def paths():
    path = V
    while len(path) + 201 < 4095:
        path += "/" + "d" * 200
        os.mkdir(path) if len(path) < 4095 else None
    left = 4095 - len(path) - 1
    longest = path + "/" + "f" * left
    print("length", len(longest))
    say("4095 create", put, longest, b"deep")
    say("4095 read", lambda: open(longest).read())
    say("4096 create", put, longest + "f", b"")
    say("4096 stat", os.stat, longest + "f")
    os.chdir(path)
    say("deeper", os.mkdir, "e" * 255)
    os.chdir("e" * 255)
    say("deeper create", put, "file", b"deepest")
    say("deeper read", lambda: open("file").read())
    say("where", os.getcwd)


def loops():
    os.symlink("loop", f"{V}/loop")
    os.symlink("b", f"{V}/a")
    os.symlink("a", f"{V}/b")
    put(f"{V}/0", b"end")
    for number in range(1, 42):
        os.symlink(str(number - 1), f"{V}/{number}")
    say("itself", os.stat, f"{V}/loop")
    say("two", os.open, f"{V}/a", os.O_RDONLY)
    say("below", os.stat, f"{V}/loop/x")
    say("40", lambda: open(f"{V}/40").read())
    say("41", os.stat, f"{V}/41")
    say("not followed", os.open, f"{V}/1", os.O_RDONLY | os.O_NOFOLLOW)
    say("beneath a file", os.stat, f"{V}/0/x")
    say("trailing slash", os.stat, f"{V}/0/")


def devices():
    for place in (V, "/image"):
        say("null", put, f"{place}/null", b"x", os.O_WRONLY, False)
        say("zero", lambda: os.read(os.open(f"{place}/zero", os.O_RDONLY), 2))
        say("kmsg", os.open, f"{place}/kmsg", os.O_RDONLY)
        say("disk", os.open, f"{place}/disk", os.O_RDONLY)
        say("disk for writing", os.open, f"{place}/disk", os.O_RDWR)
        say("nothing", os.open, f"{place}/nothing", os.O_RDONLY)
        say("fifo", os.open, f"{place}/fifo", os.O_WRONLY | os.O_NONBLOCK)
        say("socket", os.open, f"{place}/socket", os.O_RDONLY)
        status = os.stat(f"{place}/disk")
        print("status", oct(status.st_mode), status.st_rdev)
        say("mknod", os.mknod, f"{place}/made", 0o20666, os.makedev(1, 5))
        say("made", lambda: os.read(os.open(f"{place}/made", os.O_RDONLY), 2))


def wait():
    """Lets the host do something."""
    print("ready", flush=True)
    while not os.path.exists("/signal/go"):
        time.sleep(0.05)


def removed():
    put(f"{V}/open", b"before")
    file = os.open(f"{V}/open", os.O_RDWR)
    os.mkdir(f"{V}/here")
    os.chdir(f"{V}/here")
    wait()
    # What the guest was told may be believed for a second.
    time.sleep(1.5)
    say("read", os.pread, file, 6, 0)
    say("write", os.pwrite, file, b"after", 0)
    say("sync", os.fsync, file)
    say("read again", os.pread, file, 6, 0)
    print("links", os.fstat(file).st_nlink)
    say("truncate", os.ftruncate, file, 3)
    say("mapped", lambda: mmap.mmap(file, 3)[:])
    say("open", os.open, f"{V}/open", os.O_RDONLY)
    say("create", os.open, f"{V}/new", os.O_CREAT | os.O_WRONLY)
    say("create here", os.open, "new", os.O_CREAT | os.O_WRONLY)
    say("mkdir", os.mkdir, f"{V}/new")
    say("list", os.listdir, V)
    say("list here", os.listdir, ".")
    # getcwd(2) asks nobody: a network file system's kernel has the old name
    # until somebody looks it up.


def unmounted():
    put(f"{V}/file", b"before")
    file = os.open(f"{V}/file", os.O_RDWR)
    wait()
    time.sleep(1.5)
    say("read", os.pread, file, 6, 0)
    say("open", lambda: open(f"{V}/file").read())
    say("create", put, f"{V}/new", b"x")
    say("list", lambda: sorted(os.listdir(V)))


globals()[sys.argv[1]]()
