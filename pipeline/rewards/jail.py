"""Run a piece of foreign Python code where it can reach nothing: `python -I -S jail.py`, the work as JSON on stdin.

The process moves into namespaces of its own (mounts, network, processes; of users too where it is not root), in which
there is no network, no other process, and no file but the interpreter's and the system's libraries, read only, and an
empty /box of a few megabytes. Then limits are set, all privileges dropped, and the interpreter starts anew. Linux only.

    stdin     {"token", "setup", "code", "tests": [...], "cpu_seconds", "memory_mb", "box_mb"}
    stdout    a line {"token", "passed": [...], "error": what the code itself raised}; without it, the code ended early
    exit code 77 where the system does not let the process shut itself in; why is on stderr

Nothing of this project is imported here: what runs inside knows nothing of it.
"""

import ctypes
import json
import os
import resource
import signal
import sys

CANNOT = 77
_NEWNS, _NEWIPC, _NEWUTS, _NEWUSER, _NEWPID, _NEWNET = 0x20000, 0x8000000, 0x4000000, 0x10000000, 0x20000000, 0x40000000
_RDONLY, _NOSUID, _NODEV, _REMOUNT, _BIND, _REC, _PRIVATE = 1, 2, 4, 32, 4096, 16384, 1 << 18
_NO_NEW_PRIVS, _PDEATHSIG = 38, 1
_NOBODY = 65534
_SYSTEM = ("/usr", "/lib", "/lib64", "/bin", "/etc/ld.so.cache", "/dev/null")
_INSIDE = """
import json, os, sys
work = json.loads(sys.stdin.read())
out = os.dup(1)
null = os.open("/dev/null", os.O_RDWR)
for fd in (0, 1, 2):
    os.dup2(null, fd)
scope, passed, error = {"__name__": "answer"}, [], ""
try:
    exec(compile(work["setup"] + "\\n" + work["code"], "answer", "exec"), scope)
except BaseException as wrong:
    error = f"{type(wrong).__name__}: {wrong}"[:200]
for test in work["tests"] if not error else []:
    try:
        exec(compile(test, "test", "exec"), scope)
        passed.append(True)
    except BaseException:
        passed.append(False)
os.write(out, json.dumps({"token": work["token"], "passed": passed, "error": error}).encode() + b"\\n")
os._exit(0)
"""


def main() -> None:
    """Shut this process in, then become the interpreter that runs the work."""
    text = sys.stdin.buffer.read()
    work = json.loads(text)
    python, base = os.path.realpath(sys.executable), sys.base_prefix
    try:
        _enter(os.geteuid() == 0)
        if child := os.fork():  # the first process of the new namespace is the child: with it, all others end
            sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) & 0xFF)
        _close_in(base, work["box_mb"])
        if os.geteuid() == 0:
            os.setgroups([])
            os.setresgid(_NOBODY, _NOBODY, _NOBODY)
            os.setresuid(_NOBODY, _NOBODY, _NOBODY)
        _call("prctl", _PDEATHSIG, signal.SIGKILL, 0, 0, 0)  # after the change of user, which would undo it
        _call("prctl", _NO_NEW_PRIVS, 1, 0, 0, 0)
    except OSError as error:
        print(f"{error.strerror or error}", file=sys.stderr)
        os._exit(CANNOT)
    for limit, most in ((resource.RLIMIT_CPU, work["cpu_seconds"]), (resource.RLIMIT_AS, work["memory_mb"] << 20),
                        (resource.RLIMIT_FSIZE, work["box_mb"] << 20), (resource.RLIMIT_NPROC, 32),
                        (resource.RLIMIT_NOFILE, 64), (resource.RLIMIT_CORE, 0)):
        resource.setrlimit(limit, (most, most))
    give, take = os.pipe()
    if len(text) > 60_000:  # more than a pipe holds: a file of the box
        take = os.open("work.json", os.O_RDWR | os.O_CREAT)
        os.write(take, text)
        os.lseek(take, 0, os.SEEK_SET)
        give = take
    else:
        os.write(take, text)
        os.close(take)
    os.dup2(give, 0)
    os.execve(python, [python, "-I", "-S", "-B", "-c", _INSIDE], {"PATH": "/usr/bin:/bin", "HOME": "/box"})


def _enter(root: bool) -> None:
    user, group = os.geteuid(), os.getegid()
    _call("unshare", _NEWNS | _NEWIPC | _NEWUTS | _NEWPID | _NEWNET | (0 if root else _NEWUSER))
    if not root:  # somebody else's number inside: what is started by it has no privileges, here or there
        for name, line in (("setgroups", "deny"), ("uid_map", f"1000 {user} 1"), ("gid_map", f"1000 {group} 1")):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(line)


def _close_in(base: str, size_mb: int) -> None:
    """Make /tmp of this namespace the only root: the libraries, read only, and /box."""
    _mount(None, "/", None, _REC | _PRIVATE)
    root = "/tmp"
    _mount("tmpfs", root, "tmpfs", _NOSUID | _NODEV, f"size={size_mb}m,mode=755")
    for path in dict.fromkeys((*_SYSTEM, base)):
        target = root + path
        if os.path.islink(path):
            os.symlink(os.readlink(path), target)
        elif os.path.exists(path) and not os.path.exists(target):
            os.makedirs(target if os.path.isdir(path) else os.path.dirname(target), exist_ok=True)
            if not os.path.isdir(path):
                os.close(os.open(target, os.O_CREAT))
            _mount(path, target, None, _BIND | (_REC if os.path.isdir(path) else 0))
            device = path.startswith("/dev/")
            _mount(None, target, None, _REMOUNT | _BIND | _NOSUID | (0 if device else _RDONLY | _NODEV))
    os.mkdir(f"{root}/box", 0o777)
    os.chmod(f"{root}/box", 0o777)
    os.chroot(root)
    os.chdir("/box")


def _mount(source: str | None, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    encoded = [one and one.encode() for one in (source, target, kind)]
    _call("mount", *encoded, ctypes.c_ulong(flags), data and data.encode())


def _call(name: str, *arguments: object) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc[name](*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


if __name__ == "__main__":
    main()
