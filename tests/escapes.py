"""Programs that try to get out of the sandbox, and a place where it would be seen from outside if one did.

`python tests/escapes.py [LAYER,...]` runs them all, `--alone` as well with one layer at a time, and prints which of
them hold each attempt.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from hadal.sandbox import Limits, Result, Sandbox

SECRET = "sesame-2f9c41"
PRELUDE = """
import ctypes, errno, os, signal, socket, sys, time
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
def raw(number, *arguments):
    got = libc.syscall(ctypes.c_long(number), *[ctypes.c_long(a) if isinstance(a, int) else a for a in arguments])
    if got < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return got
def attempt(act):
    try:
        got = act()
    except BaseException as error:
        print("HELD", type(error).__name__, error)
    else:
        print("DONE", got)
"""


@dataclass(frozen=True)
class Attempt:
    """`program` may use {dir}, {key}, {victim}, {tcp}, {udp}, {unix}, {abstract}, {dgram}, {me}. It is contained if
    nothing outside changed, the secret is not in its output, and `contained` (no DONE) holds of its result."""

    name: str
    program: str
    contained: Callable[[Result], bool] = lambda result: "DONE" not in result.stdout
    alone: bool = True  # may be run with one layer, where it may succeed
    tests: str | None = None
    seconds: float = 10.0  # on the clock; short where nothing but the deadline ends it


def ended(*statuses: str) -> Callable[[Result], bool]:
    return lambda result: result.status in statuses


X86 = os.uname().machine == "x86_64"
# mount, unshare, setns, pivot_root, chroot, bpf, io_uring_setup, memfd_create, keyctl, add_key, userfaultfd,
# perf_event_open, init_module, open_by_handle_at, pidfd_open, process_vm_readv, shmget, msgget, swapon, reboot,
# kexec_load, ptrace, personality, name_to_handle_at, quotactl, acct
RAW = ((165, 272, 308, 155, 161, 321, 425, 319, 250, 248, 323, 298, 175, 304, 434, 310, 29, 68, 167, 169, 246, 101,
        135, 303, 179, 163) if X86 else
       (40, 97, 268, 41, 51, 280, 425, 279, 219, 217, 282, 241, 105, 265, 434, 270, 194, 186, 224, 142, 104, 117,
        92, 264, 60, 89))  # fmt: skip
FORK, CLONE, SHMGET = (57, 56, 29) if X86 else (220, 220, 194)

ATTEMPTS = [
    # ---------------------------------------------------------------- files
    Attempt("read a key file", "attempt(lambda: open('{key}').read())"),
    Attempt("read the system's users", "attempt(lambda: open('/etc/passwd').read())"),
    Attempt("list a folder outside", "attempt(lambda: os.listdir('{dir}'))"),
    Attempt("append to a file outside", "attempt(lambda: open('{key}', 'a').write('x'))"),
    Attempt("make a file outside", "attempt(lambda: open('{dir}/new', 'w').write('x'))"),
    Attempt("truncate while opening to read", "attempt(lambda: os.open('{key}', os.O_RDONLY | os.O_TRUNC))"),
    Attempt("truncate by path", "attempt(lambda: os.truncate('{key}', 0))"),
    Attempt("change a file's mode", "attempt(lambda: os.chmod('{key}', 0o777))"),
    Attempt("change a file's owner", "attempt(lambda: os.chown('{key}', os.getuid(), os.getgid()))"),
    Attempt("change a file's time", "attempt(lambda: os.utime('{key}', (0, 0)))"),
    Attempt("change a file's attributes", "attempt(lambda: os.setxattr('{key}', 'user.x', b'1'))"),
    Attempt("read through a symlink", "os.symlink('{key}', 'l'); attempt(lambda: open('l').read())"),
    Attempt("write through a symlink", "os.symlink('{key}', 'l'); attempt(lambda: open('l', 'a').write('x'))"),
    Attempt("write through a hard link", "attempt(lambda: (os.link('{key}', 'l'), open('l', 'a').write('x')))"),
    Attempt("rename a file outside", "attempt(lambda: os.rename('{key}', '{key}2'))"),
    Attempt("remove a file outside", "attempt(lambda: os.unlink('{key}'))"),
    Attempt("climb out with ..", "attempt(lambda: open('../' * 20 + '{key}'.lstrip('/')).read())"),
    Attempt("open raw devices", """
        for path in ("/dev/mem", "/dev/kmsg", "/dev/tty", "/dev/vda", "/dev/sda", "/dev/fuse"):
            attempt(lambda: os.open(path, os.O_RDWR))"""),
    Attempt("read the parent's memory", "attempt(lambda: open(f'/proc/{os.getppid()}/mem', 'rb').read(1))"),
    Attempt("read the starter's environment", "attempt(lambda: open('/proc/{me}/environ').read())"),
    Attempt("read a process's command line", "attempt(lambda: open('/proc/{victim}/cmdline').read())"),
    Attempt("look through /proc's roots", """
        for pid in ("self", os.getppid(), {victim}, {me}):
            attempt(lambda: open(f"/proc/{pid}/root{key}").read())"""),
    # ---------------------------------------------------------------- network
    Attempt("connect by TCP", "attempt(lambda: socket.create_connection(('127.0.0.1', {tcp}), 1))"),
    Attempt("send by UDP", """
        attempt(lambda: socket.socket(type=socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', {udp})) and None)""",
            lambda result: True),  # in a cell it goes nowhere: the listener outside is what counts
    Attempt("listen on a port", "attempt(lambda: socket.create_server(('127.0.0.1', 0)))",
            lambda result: True),  # a port of its own in a cell is no way out: what matters is the next
    Attempt("use a unix socket", "attempt(lambda: socket.socket(socket.AF_UNIX).connect('{unix}'))"),
    Attempt("use an abstract socket", "attempt(lambda: socket.socket(socket.AF_UNIX).connect('\\0{abstract}'))"),
    Attempt("send from a pair to a named socket", """
        attempt(lambda: socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)[0].sendto(b'x', '{dgram}'))"""),
    Attempt("open raw, packet and netlink sockets", """
        attempt(lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1).sendto(b'x', ('127.0.0.1', 0)) and None)
        attempt(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW).bind(('eth0', 0)))""",
            lambda result: "DONE" not in result.stdout),
    # ---------------------------------------------------------------- processes
    Attempt("fork bomb", """
        def bomb():
            for _ in range(300):
                if os.fork() == 0:
                    time.sleep(30); os._exit(0)
        attempt(bomb)""", alone=False),
    Attempt("fork bomb in shell words", "attempt(lambda: os.system(':(){ :|:& };:') and 1/0)", alone=False),
    Attempt("execute a shell", "attempt(lambda: os.execv('/bin/sh', ['sh', '-c', 'echo DONE']))"),
    Attempt("spawn a program", "attempt(lambda: os.posix_spawn('/bin/sh', ['sh', '-c', 'echo DONE'], {}))"),
    Attempt("fork and clone by number", f"""
        rest = (0, 0, 0, 0)
        for call in (({FORK}, 17, *rest), ({CLONE}, 17, *rest), ({CLONE}, 0x10000000 | 17, *rest), (435, 0, 0)):
            def act():
                if raw(*call) == 0:
                    os._exit(0)
            attempt(act)"""),
    Attempt("fork by the other numbers of x86", """
        if os.uname().machine == "x86_64":
            attempt(lambda: raw(0x40000000 + 57) or os._exit(0))"""),
    Attempt("become a daemon", """
        def daemon():
            if os.fork() == 0:
                os.setsid()
                if os.fork() == 0:
                    time.sleep(1.5); open("{key}", "a").write("x"); os._exit(0)
                os._exit(0)
        attempt(daemon)""", alone=False),
    Attempt("kill the parent", "attempt(lambda: os.kill(os.getppid(), signal.SIGKILL))",
            lambda result: "DONE" not in result.stdout and result.exit_code is not None),
    Attempt("kill a process of the same user", "attempt(lambda: os.kill({victim}, signal.SIGKILL))"),
    Attempt("kill by thread and by queue", f"""
        attempt(lambda: raw({200 if X86 else 130}, {{victim}}, 9))
        attempt(lambda: raw({129 if X86 else 138}, {{victim}}, 9, b"\\0" * 128))"""),
    Attempt("kill all", "attempt(lambda: os.kill(-1, signal.SIGKILL)); attempt(lambda: os.kill(0, signal.SIGKILL))",
            alone=False),
    Attempt("have a file's events kill", """
        import fcntl
        def act():
            reader, writer = os.pipe()
            fcntl.fcntl(reader, fcntl.F_SETOWN, {victim})
            fcntl.fcntl(reader, 10, signal.SIGKILL)
            fcntl.fcntl(reader, fcntl.F_SETFL, os.O_ASYNC)
            os.write(writer, b"x")
        attempt(act)"""),
    Attempt("trace a process", f"attempt(lambda: raw({101 if X86 else 117}, 16, {{victim}}, 0, 0))"),
    Attempt("read a process's memory by call", f"""
        attempt(lambda: raw({310 if X86 else 270}, os.getppid(), b"\\0" * 16, 1, b"\\0" * 16, 1, 0))"""),
    Attempt("lower a process's priority", "attempt(lambda: os.setpriority(os.PRIO_PROCESS, {victim}, 19))"),
    Attempt("starve a process by its limits", """
        import resource
        attempt(lambda: resource.prlimit({victim}, resource.RLIMIT_NOFILE, (0, 0)))"""),
    # ---------------------------------------------------------------- the kernel
    Attempt("system calls by number", f"""
        for number in {RAW}:
            attempt(lambda: raw(number, 0, 0, 0, 0, 0, 0))""", alone=False),
    Attempt("become root", """
        for act in (lambda: os.setuid(0), lambda: os.setresuid(0, 0, 0), lambda: os.setgroups([0]),
                    lambda: os.chroot("/")):
            attempt(act)"""),
    Attempt("new namespaces", f"""
        for flag in (0x10000000, 0x20000, 0x20000000, 0x40000000):
            attempt(lambda: raw({272 if X86 else 97}, flag))"""),
    Attempt("type into a terminal", """
        import fcntl
        for fd in range(3):
            attempt(lambda: fcntl.ioctl(fd, 0x5412, b"x"))"""),
    Attempt("raise its own limits", """
        import resource
        attempt(lambda: resource.setrlimit(resource.RLIMIT_AS, (1 << 40, 1 << 40)))
        attempt(lambda: resource.setrlimit(resource.RLIMIT_CPU, (1 << 30, 1 << 30)))"""),
    # ---------------------------------------------------------------- exhaustion
    Attempt("eat memory", "x = []\nwhile True: x.append(bytearray(1 << 20))", ended("memory")),
    Attempt("eat memory by mmap", """
        import mmap
        kept = []
        while True:
            part = mmap.mmap(-1, 1 << 24)
            part.write(b"x" * (1 << 24))
            kept.append(part)""", ended("memory", "error")),
    Attempt("eat memory in pipes", """
        import fcntl
        attempt(lambda: fcntl.fcntl(os.pipe()[0], 1031, 1 << 20))"""),
    Attempt("keep memory in a shared segment", f"""
        attempt(lambda: raw({SHMGET}, 0x68616461, 1 << 20, 0o1600))"""),
    Attempt("start threads without end", """
        import threading
        threading.stack_size(1 << 16)
        count = 0
        try:
            while True:
                threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
                count += 1
        except RuntimeError:
            print("HELD after", count)""", lambda result: result.status in ("ok", "timeout", "memory", "error")),
    Attempt("fill the disk with one file", """
        def fill():
            with open("big", "wb") as file:
                while True:
                    file.write(b"x" * (1 << 20)); file.flush()
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        attempt(fill)""", lambda result: "HELD" in result.stdout or result.status == "output"),
    Attempt("fill the disk with many files", """
        number = 0
        while True:
            number += 1
            with open(str(number), "wb") as file:
                file.write(b"x" * (1 << 16))""", ended("output", "error")),
    Attempt("write to stdout without end", "while True: print('x' * 1000)", ended("output")),
    Attempt("write to stderr without end", "while True: sys.stderr.write('x' * 1000)", ended("output")),
    Attempt("ignore every signal and compute", """
        for number in range(1, 65):
            try: signal.signal(number, signal.SIG_IGN)
            except (OSError, ValueError): pass
        while True: pass""", ended("timeout"), seconds=1.0),
    Attempt("sleep for ever", """
        signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))
        while True: time.sleep(100)""", ended("timeout"), seconds=1.0),
    Attempt("leave threads running", """
        import threading
        threading.Thread(target=time.sleep, args=(1000,)).start()
        os.close(1); os.close(2)""", ended("timeout"), seconds=1.0),
    Attempt("crash the interpreter", "ctypes.string_at(0)", ended("error")),
    Attempt("nest folders past what a path can name", """
        for number in range(3000):
            os.mkdir("d" * 50); os.chdir("d" * 50)""", lambda result: True),
    Attempt("hide a folder from its owner", "os.mkdir('a'); open('a/b', 'w'); os.mkdir('a/c'); os.mkdir('z', 0)",
            lambda result: True),
    # ---------------------------------------------------------------- the sandbox itself
    Attempt("write to inherited files", """
        for fd in range(3, 1024):
            try: os.write(fd, b"\\x02\\0\\0\\0\\0\\0\\0\\0{}"); os.write(fd, b"r" * 100)
            except OSError: pass""", ended("ok", "error", "output")),
    Attempt("flood the sandbox's own channel", """
        while True:
            try: os.write(3, b"x" * 4096)
            except OSError: time.sleep(0.01)""", ended("output", "timeout"), seconds=1.0),
    Attempt("pretend to have answered", """
        print('{"status": "ok", "exit_code": 0}'); os.write(1, b"\\x02\\0\\0\\0\\0\\0\\0\\0{}"); os._exit(3)""",
            ended("error")),
    Attempt("find secrets in the environment", "print(dict(os.environ))",
            lambda result: set(eval(result.stdout)) <= {"PATH", "LANG", "TZ", "HOME", "TMPDIR", "PWD", "LC_CTYPE",
                                                        "PYTHONUTF8", "PYTHONHASHSEED", "MALLOC_ARENA_MAX"}),
    Attempt("find the tests before they run", """
        import gc
        words = [text for thing in gc.get_objects() if isinstance(thing, dict) for text in thing.values()
                 if isinstance(text, str)]
        frame = sys._getframe()
        while frame:
            words += [text for text in frame.f_locals.values() if isinstance(text, str)]
            frame = frame.f_back
        print([word for word in words if "assert 'sesame" in word and "gc.get_objects" not in word])""",
            lambda result: result.stdout.strip() == "[]" and result.status == "ok", tests=f"assert '{SECRET}'"),
    Attempt("leave before the tests", "sys.exit(0)", ended("error"), tests="assert False"),
    Attempt("say that it is ready and hang up", "os.write(3, b'r'); os.close(3); time.sleep(0.2)", ended("error"),
            tests="assert False"),
    Attempt("leave before the tests, hard", "os._exit(0)", ended("error"), tests="assert False"),
    Attempt("leave in the tests", "def f(): os._exit(0)", ended("error"), tests="assert f() == 1"),
    Attempt("replace what ends a process", """
        os._exit = lambda code: None
        sys.exit(0)""", ended("error", "ok")),
]  # fmt: skip


class Arena:
    """A folder with a key file that anyone may read and write, listeners, and a process of the same user: all that an
    escape would touch, seen from outside."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.key = folder / "key"
        self.victim = subprocess.Popen(["sleep", "600"])
        self.tcp, self.udp = socket.create_server(("127.0.0.1", 0)), socket.socket(type=socket.SOCK_DGRAM)
        self.udp.bind(("127.0.0.1", 0))
        self.unix, self.abstract = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
        self.dgram = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.abstract_name = f"hadal-{os.getpid()}-{id(self)}"
        self.unix.bind(str(folder / "unix"))
        self.abstract.bind("\0" + self.abstract_name)
        self.dgram.bind(str(folder / "dgram"))
        self.listeners = [self.tcp, self.udp, self.unix, self.abstract, self.dgram]
        for each in (self.unix, self.abstract):
            each.listen()
        for name in ("unix", "dgram"):
            (folder / name).chmod(0o777)
        for each in self.listeners:
            each.setblocking(False)
        folder.chmod(0o777)
        self.reset()

    def reset(self) -> None:
        for each in set(self.folder.iterdir()) - {self.folder / "unix", self.folder / "dgram"}:
            each.unlink()
        self.key.write_text(SECRET)
        self.key.chmod(0o666)
        os.utime(self.key, (1e9, 1e9))
        if self.victim.poll() is not None:
            self.victim = subprocess.Popen(["sleep", "600"])

    def fill_in(self, program: str) -> str:
        known = {"dir": self.folder, "key": self.key, "victim": self.victim.pid, "tcp": self.tcp.getsockname()[1],
                 "udp": self.udp.getsockname()[1], "unix": self.folder / "unix", "abstract": self.abstract_name,
                 "dgram": self.folder / "dgram", "me": os.getpid()}  # fmt: skip
        for name, value in known.items():
            program = program.replace("{" + name + "}", str(value))
        return PRELUDE + textwrap.dedent(program)

    def harm(self) -> list[str]:
        """What was done outside since the last reset."""
        found = []
        state = self.key.stat() if self.key.exists() else None
        if state is None or self.key.read_text() != SECRET:
            found.append("the key was changed")
        elif (state.st_mode & 0o777, state.st_mtime, state.st_uid) != (0o666, 1e9, os.getuid()):
            found.append("the key's mode, time or owner was changed")
        elif os.listxattr(self.key):
            found.append("the key has attributes")
        if extra := {each.name for each in self.folder.iterdir()} - {"key", "unix", "dgram"}:
            found.append(f"there is {extra}")
        if self.victim.poll() is not None:
            found.append("the victim is dead")
        elif os.getpriority(os.PRIO_PROCESS, self.victim.pid) == 19:
            found.append("the victim was slowed")
        for name, each in zip(("tcp", "udp", "unix", "abstract", "dgram"), self.listeners, strict=True):
            try:
                each.accept() if name in ("tcp", "unix", "abstract") else each.recv(100)
                found.append(f"something came over {name}")
            except BlockingIOError:
                continue
        return found

    def close(self) -> None:
        self.victim.kill()
        self.victim.wait()
        for each in self.listeners:
            each.close()


LIMITS = Limits(cpu_seconds=5, memory=160 << 20, disk=4 << 20, output=1 << 18)


def faults(attempt: Attempt, sandbox: Sandbox, arena: Arena) -> tuple[list[str], Result]:
    """Run one attempt; how it got out (nothing where it was contained), and its result."""
    arena.reset()
    limits = replace(LIMITS, seconds=attempt.seconds)
    result = sandbox.run(arena.fill_in(attempt.program), tests=attempt.tests, limits=limits)
    if attempt.name == "become a daemon":
        time.sleep(1.0)
    found = arena.harm()
    if SECRET in result.stdout + result.stderr:
        found.append("the secret came out")
    if not attempt.contained(result):
        told = f"{result.stdout[:200]!r} {result.stderr[-200:]!r} {result.note}"
        found.append(f"{result.status} {result.exit_code} {told}")
    after = sandbox.run("import os; print(os.listdir('.'), 6 * 7)")
    if after.stdout != "[] 42\n" or not after.ok:
        found.append(f"the sandbox is not well afterwards: {after}")
    return found, result


def processes_of(folder: Path) -> list[int]:
    """Processes of sandboxes whose folders lie in `folder`: jobs share their keeper's command line, which names it."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            if str(folder).encode() in Path(f"/proc/{pid}/cmdline").read_bytes() and int(pid) != os.getpid():
                found.append(int(pid))
        except OSError:
            continue
    return found


def run_suite(layers: tuple[str, ...] | None, folder: Path) -> tuple[list[str], dict[str, Result]]:
    """All attempts in one sandbox; every fault found, and the results. Folders of the sandbox go below `folder`."""
    outside, private = folder / "outside", folder / "private"
    outside.mkdir()
    private.mkdir()
    private.chmod(0o711)
    before, tempfile.tempdir = tempfile.tempdir, str(private)
    shared = set(os.listdir("/dev/shm"))
    arena = Arena(outside)
    faulty, results = [], {}
    try:
        with Sandbox(places=1, only=layers) as sandbox:
            for attempt in ATTEMPTS:
                found, results[attempt.name] = faults(attempt, sandbox, arena)
                faulty += [f"{attempt.name}: {fault}" for fault in found]
    finally:
        arena.close()
        tempfile.tempdir = before
    time.sleep(0.1)
    for pid in processes_of(private):
        faulty.append(f"process {pid} was left behind")
    if left := os.listdir(private):
        faulty.append(f"folders were left behind: {left}")
    if more := set(os.listdir("/dev/shm")) - shared:
        faulty.append(f"shared memory may have been left behind: {more}")
    return faulty, results


def held_by_alone(folder: Path) -> dict[str, list[str]]:
    """For each attempt, which layers contain it when each is the only one up ("none": it fails with none up)."""
    from hadal.sandbox.layers import available

    names = [name for name, reason in available().items() if reason is None and name != "uid"]
    table: dict[str, list[str]] = {attempt.name: [] for attempt in ATTEMPTS if attempt.alone}
    for layer in ["none", *names]:
        outside = folder / layer
        outside.mkdir()
        arena = Arena(outside)
        only = () if layer == "none" else (layer,)
        with Sandbox(places=1, only=only, allow_unsandboxed=True) as sandbox:
            for attempt in ATTEMPTS:
                if attempt.alone and not faults(attempt, sandbox, arena)[0]:
                    table[attempt.name].append(layer)
        arena.close()
    return table


def main() -> int:
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o711)
        alone = "--alone" in sys.argv
        named = [word for word in sys.argv[1:] if word != "--alone"]
        layers = tuple(named[0].split(",")) if named else None
        faulty, _ = run_suite(layers, Path(name))
        print(f"{len(ATTEMPTS)} attempts as uid {os.getuid()}, layers {layers or 'all'}: {len(faulty)} got out")
        print(*faulty, sep="\n")
        if alone:
            for attempt, held in held_by_alone(Path(name)).items():
                print(f"{attempt:<45} {' '.join(held)}")
    return int(bool(faulty))


if __name__ == "__main__":
    sys.exit(main())
