"""
Runs a program under the restrictions of systemd/llm-optimizer.service, as far as they can be had without PID 1.

    python sandbox.py STATE_DIR RUNTIME_DIR COMMAND ...

In the unit's words it applies NoNewPrivileges, CapabilityBoundingSet, User (as root), UMask, LimitNOFILE, ProtectSystem,
ProtectHome, PrivateTmp, PrivateDevices, PrivateIPC, ProtectHostname, ProtectProc and ProcSubset (as root), and, by
filters built as systemd builds them, SystemCallFilter, RestrictAddressFamilies, RestrictNamespaces, RestrictRealtime,
RestrictSUIDSGID, MemoryDenyWriteExecute, LockPersonality. A call that SystemCallFilter does not list ends the process
here, where the unit answers EPERM: so a run that ends well has made none.

Not applied: control groups (DevicePolicy, OOMPolicy), KeyringMode, RemoveIPC, LoadCredential. Where namespaces are not to
be had, only what needs none is applied; the first line on stderr says what is.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import resource
import socket
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).parents[2]
UNIT: Final = ROOT / "systemd" / "llm-optimizer.service"
USER: Final = 64123  # nobody's; its group is that of the unit

_libc: Final = ctypes.CDLL(None, use_errno=True)

_NEWNS, _NEWUTS, _NEWIPC, _NEWUSER = 0x20000, 0x4000000, 0x8000000, 0x10000000
_NAMESPACES: Final = 0x7E020000  # every CLONE_NEW flag that a filter sees
_MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_BIND, _MS_REC, _MS_PRIVATE = 0x2, 0x4, 0x8, 0x1000, 0x4000, 0x40000
_OPEN_TREE, _MOVE_MOUNT, _MOUNT_SETATTR = 428, 429, 442  # the same on all architectures
_OPEN_TREE_CLONE, _AT_RECURSIVE, _MOVE_EMPTY_PATH, _ATTR_RDONLY, _AT_FDCWD = 1, 0x8000, 4, 1, -100
_PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 24, 38


def settings(unit: Path = UNIT) -> dict[str, list[str]]:
    """
    The values of each key of the unit's [Service].
    """
    found: dict[str, list[str]] = {}
    for key, value in re.findall(r"^([A-Za-z]+)=(.*)$", unit.read_text().partition("[Service]")[2], re.MULTILINE):
        found.setdefault(key, []).append(value)
    return found


def _check(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


# --- folders ---


class _Attributes(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("set", "clear", "propagation", "userns")]


def _mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
    encoded = [text.encode() for text in (source, target, kind)]
    _check(_libc.mount(*encoded, ctypes.c_ulong(flags), data.encode()), f"mount {kind or source} on {target}")


def _tree(path: Path) -> int:
    flags = _OPEN_TREE_CLONE | os.O_CLOEXEC | _AT_RECURSIVE
    return _check(_libc.syscall(_OPEN_TREE, _AT_FDCWD, bytes(path), flags), f"open_tree {path}")


def _attach(tree: int, path: Path) -> None:
    if path.parent == Path("/dev") and path.name != "shm":
        path.touch()
    else:
        path.mkdir(mode=0o755, parents=True, exist_ok=True)
    _check(_libc.syscall(_MOVE_MOUNT, tree, b"", _AT_FDCWD, bytes(path), _MOVE_EMPTY_PATH), f"move_mount {path}")
    os.close(tree)


def _attribute(path: Path, flags: int, **change: int) -> None:
    wanted = _Attributes(**change)
    _check(
        _libc.syscall(_MOUNT_SETATTR, _AT_FDCWD, bytes(path), flags, ctypes.byref(wanted), ctypes.sizeof(wanted)),
        f"mount_setattr {path}",
    )


_DEVICES: Final = ("null", "zero", "full", "random", "urandom", "shm")
_HIDDEN: Final = ("/tmp", "/var/tmp", "/home", "/root", "/run/user")  # noqa: S108 - these are the folders themselves


def _known_group(name: str, number: int) -> None:
    """
    As if systemd-sysusers had been there.
    """
    known = Path("/etc/group")
    others = [line for line in known.read_text().splitlines() if not line.startswith(f"{name}:")]
    ours = Path(_HIDDEN[0]) / "group"
    ours.write_text("\n".join([*others, f"{name}:x:{number}:", ""]))
    _mount(str(ours), str(known), "", _MS_BIND)


def _namespaces(unit: dict[str, list[str]], writable: Iterable[Path]) -> None:
    """
    Own mounts: all read-only but `writable`, homes and temporary folders empty but for what the program is made of.
    """
    uid, gid = os.getuid(), os.getgid()
    _check(_libc.unshare(_NEWNS | _NEWIPC | _NEWUTS | (_NEWUSER if uid else 0)), "unshare")
    if uid:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
        Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")
    _mount("none", "/", "", _MS_REC | _MS_PRIVATE)
    made_of = {path: _tree(path) for path in (ROOT, Path(sys.base_prefix), Path(sys.prefix))}
    kept = {path: _tree(path) for path in writable}
    devices = {name: _tree(Path("/dev") / name) for name in _DEVICES}
    for folder in _HIDDEN:
        if Path(folder).is_dir():
            _mount("tmpfs", folder, "tmpfs", _MS_NOSUID | _MS_NODEV, "mode=0755")
    _mount("tmpfs", "/dev", "tmpfs", _MS_NOSUID | _MS_NOEXEC, "mode=0755")
    for name, tree in devices.items():
        _attach(tree, Path("/dev") / name)
    for path, tree in made_of.items():
        _attach(tree, path)
    for path, tree in kept.items():
        _attach(tree, path)
    _known_group(unit["Group"][0], gid if uid else USER)
    _attribute(Path("/"), _AT_RECURSIVE, set=_ATTR_RDONLY)
    for path in (*kept, Path("/proc"), *(Path(folder) for folder in _HIDDEN[:2])):
        _attribute(path, 0, clear=_ATTR_RDONLY)
    if not uid:
        _mount("proc", "/proc", "proc", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC, "hidepid=invisible,subset=pid")


# --- system calls ---


class _Compare(ctypes.Structure):
    _fields_ = [("arg", ctypes.c_uint), ("op", ctypes.c_int), ("a", ctypes.c_uint64), ("b", ctypes.c_uint64)]


_NE, _LT, _EQ, _GT, _MASKED = 1, 2, 4, 6, 7
_ALLOW: Final = 0x7FFF0000
_KILL: Final = 0x80000000


def _errno(number: int) -> int:
    return 0x00050000 | number


class Filter:
    """
    One filter of libseccomp. `default`: what happens to calls without a rule.
    """

    def __init__(self, default: int) -> None:
        self._lib = ctypes.CDLL("libseccomp.so.2", use_errno=True)
        self._lib.seccomp_init.restype = ctypes.c_void_p
        self._lib.seccomp_init.argtypes = [ctypes.c_uint32]
        self._context = ctypes.c_void_p(self._lib.seccomp_init(default))

    def rule(self, action: int, name: str, *compares: tuple[int, int, int, int]) -> None:
        """
        Add a rule; a call that this architecture does not have is left out.
        """
        number = self._lib.seccomp_syscall_resolve_name(name.encode())
        if number < 0:
            return
        made = (_Compare * len(compares))(*(_Compare(*one) for one in compares))
        result = self._lib.seccomp_rule_add_array(
            self._context, ctypes.c_uint32(action), number, ctypes.c_uint(len(compares)), made
        )
        if result < 0 and result != -errno.EACCES:  # EACCES: the same as the default
            raise OSError(-result, f"rule for {name}")

    def load(self) -> None:
        result = self._lib.seccomp_load(self._context)
        if result < 0:
            raise OSError(-result, "seccomp_load")


def call_groups() -> dict[str, list[str]]:
    """
    systemd's groups of system calls, each with its calls and groups.
    """
    told = subprocess.run(["systemd-analyze", "syscall-filter"], capture_output=True, text=True, check=True)
    found: dict[str, list[str]] = {}
    for line in told.stdout.splitlines():
        if line.startswith("@"):
            group = found.setdefault(line.strip(), [])
        elif re.fullmatch(r"    [@\w-]+", line):
            group.append(line.strip())
        elif not line.startswith(" "):
            group = []  # what follows a remark
    return found


def allowed_calls(filters: Iterable[str]) -> set[str]:
    """
    What the values of SystemCallFilter leave.
    """
    groups = call_groups()

    def flat(word: str) -> set[str]:
        return set().union(*map(flat, groups[word])) if word.startswith("@") else {word}

    allowed = flat("@default")
    for value in filters:
        calls: set[str] = set().union(*map(flat, value.removeprefix("~").split()))
        allowed = allowed - calls if value.startswith("~") else allowed | calls
    return allowed


def _address_families(value: str) -> Filter:
    wanted = sorted(int(getattr(socket, name)) for name in value.split())
    made = Filter(_ALLOW)
    refuse = _errno(errno.EAFNOSUPPORT)
    made.rule(refuse, "socket", (0, _LT, wanted[0], 0))
    made.rule(refuse, "socket", (0, _GT, wanted[-1], 0))
    for family in range(wanted[0], wanted[-1]):
        if family not in wanted:
            made.rule(refuse, "socket", (0, _EQ, family, 0))
    return made


def _namespace_calls(_: str) -> Filter:
    made = Filter(_ALLOW)
    made.rule(_errno(errno.ENOSYS), "clone3")  # its flags are in memory, which a filter cannot read
    for bit in range(32):
        if _NAMESPACES & 1 << bit:
            made.rule(_errno(errno.EPERM), "clone", (0, _MASKED, 1 << bit, 1 << bit))
            made.rule(_errno(errno.EPERM), "unshare", (0, _MASKED, 1 << bit, 1 << bit))
    made.rule(_errno(errno.EPERM), "setns")
    return made


def _writable_code(_: str) -> Filter:
    made = Filter(_ALLOW)
    made.rule(_errno(errno.EPERM), "mmap", (2, _MASKED, 6, 6))
    for name in ("mprotect", "pkey_mprotect"):
        made.rule(_errno(errno.EPERM), name, (2, _MASKED, 4, 4))
    made.rule(_errno(errno.EPERM), "shmat", (2, _MASKED, 0o100000, 0o100000))
    return made


def _privileged_modes(_: str) -> Filter:
    made = Filter(_ALLOW)
    made.rule(_errno(errno.ENOSYS), "openat2")
    modes = {"chmod": 1, "fchmod": 1, "fchmodat": 2, "mkdir": 1, "mkdirat": 2, "creat": 1, "mknod": 1, "mknodat": 2}
    for bit in (0o4000, 0o2000):
        for name, arg in modes.items():
            made.rule(_errno(errno.EPERM), name, (arg, _MASKED, bit, bit))
        for name, arg in (("open", 1), ("openat", 2)):
            creating = (arg, _MASKED, os.O_CREAT, os.O_CREAT)
            made.rule(_errno(errno.EPERM), name, creating, (arg + 1, _MASKED, bit, bit))
    return made


def _realtime(_: str) -> Filter:
    made = Filter(_ALLOW)
    for policy in (1, 2, 6, 7):  # FIFO, RR, DEADLINE, and the next one, whatever it will be
        made.rule(_errno(errno.EPERM), "sched_setscheduler", (1, _EQ, policy, 0))
    return made


def _personality(_: str) -> Filter:
    made = Filter(_ALLOW)
    made.rule(_errno(errno.EPERM), "personality", (0, _NE, 0, 0))
    return made


_FILTERS: Final[dict[str, Callable[[str], Filter]]] = {
    "RestrictAddressFamilies": _address_families,
    "RestrictNamespaces": _namespace_calls,
    "MemoryDenyWriteExecute": _writable_code,
    "RestrictRealtime": _realtime,
    "RestrictSUIDSGID": _privileged_modes,
    "LockPersonality": _personality,
}


def filters(unit: dict[str, list[str]]) -> list[Filter]:
    """
    All filters of the unit, the one that allows least last.
    """
    made = [make(unit[key][0]) for key, make in _FILTERS.items()]
    last = Filter(_KILL)
    for name in sorted(allowed_calls(unit["SystemCallFilter"])):
        last.rule(_ALLOW, name)
    return [*made, last]


# --- the process ---


def _drop(unit: dict[str, list[str]]) -> None:
    """
    The rights of a plain user without capabilities, and no way to get others.
    """
    capability = 0
    while _libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0) == 0:
        capability += 1
    if os.getuid() == 0:
        os.setgroups([])
        os.setresgid(USER, USER, USER)
        os.setresuid(USER, USER, USER)
    _check(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
    wanted = int(unit["LimitNOFILE"][0])
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(wanted, hard), min(wanted, hard)))
    os.umask(int(unit["UMask"][0], 8))


def main() -> None:
    state, runtime, command = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]
    unit = settings()
    made: list[Any] = list(filters(unit))  # while systemd-analyze may still be run
    applied = "all of it"
    if os.getuid() == 0:
        for folder in (state, runtime):
            os.chown(folder, USER, USER)
    try:
        _namespaces(unit, (state, runtime))
    except PermissionError as error:
        applied = f"without namespaces: error {error.errno}"
    print(f"sandbox: {applied}", file=sys.stderr, flush=True)
    _drop(unit)
    os.chdir(state)
    os.environ.update({"STATE_DIRECTORY": str(state), "RUNTIME_DIRECTORY": str(runtime), "HOME": str(state)})
    for one in made:
        one.load()
    os.execv(command[0], command)  # noqa: S606 - no shell is wanted


if __name__ == "__main__":
    main()
