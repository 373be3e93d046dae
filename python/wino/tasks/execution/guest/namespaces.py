"""A root of its own: new namespaces, and a file system that holds what Python needs and nothing else."""

from __future__ import annotations

import contextlib
import ctypes
import os
import struct
import sys
from typing import Any, NoReturn

from . import confine

_NOBODY = 65534
_NAMESPACES = {"MNT": 0x20000, "CGROUP": 0x2000000, "UTS": 0x4000000, "IPC": 0x8000000, "USER": 0x10000000}
_UNSHARED = 0x60000000 | sum(_NAMESPACES.values())  # and those of processes and of the network
_RDONLY, _NOSUID, _NODEV, _NOEXEC, _BIND, _REC, _PRIVATE = 1, 2, 4, 8, 4096, 16384, 1 << 18
_MOUNT_SETATTR, _HERE, _RECURSIVE, _DETACH = 442, -100, 0x8000, 2
DEVICES = ("null", "zero", "full", "random", "urandom")


def enter(view: dict[str, Any]) -> None:
    """Return only in a process inside; those outside wait for it and leave with it.

    ``view``: ``folders`` and ``links`` (path, target) to show, ``bytes`` and ``inodes`` of the writable ``/tmp``,
    ``nobody``: whether to become the host's user 65534, which takes root, instead of showing our user as it.
    """
    _unshare(view["nobody"])
    inner = os.fork()
    if inner:
        os.closerange(3, 1 << 16)
        os.waitpid(inner, 0)
        os._exit(0)
    confine.die_with_parent()
    _build(view)
    leave_first_process()
    confine.bound_privileges()
    if view["nobody"]:
        os.setgroups([])
        os.setresgid(_NOBODY, _NOBODY, _NOBODY)
        os.setresuid(_NOBODY, _NOBODY, _NOBODY)
    confine.set_dumpable(True)
    os.chdir("/tmp")


def leave_first_process() -> None:
    """Return in a child of process 1, which from here on only waits, and which the child cannot look into."""
    confine.set_dumpable(False)
    runner = os.fork()
    if runner:
        _reap(runner)
    confine.set_dumpable(True)


def _unshare(nobody: bool) -> None:
    """Leave the host's namespaces. Who we are inside is written by a child that stays outside."""
    user, group, us = os.geteuid(), os.getegid(), os.getpid()
    reader, writer = os.pipe()
    helper = os.fork()
    if not helper:
        os.close(writer)
        os.read(reader, 1)
        try:
            if not nobody:
                _write(f"/proc/{us}/setgroups", "deny")
            for kind, own in (("uid", user), ("gid", group)):
                lines = f"0 {own} 1\n{_NOBODY} {_NOBODY} 1\n" if nobody else f"{_NOBODY} {own} 1\n"
                _write(f"/proc/{us}/{kind}_map", lines)
        except OSError as error:
            print(f"user namespace: {error}", file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    os.close(reader)
    confine.call("unshare", _UNSHARED)
    os.close(writer)
    if os.waitpid(helper, 0)[1]:
        os._exit(1)


def _write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)


def _mount(source: str, target: str, kind: str = "", flags: int = 0, data: str = "") -> None:
    confine.call("mount", source.encode(), target.encode(), kind.encode() or None, flags, data.encode() or None)


def _build(view: dict[str, Any]) -> None:
    _mount("none", "/", flags=_REC | _PRIVATE)
    _mount("tmpfs", "/tmp", "tmpfs", _NOSUID | _NODEV, "mode=755,size=1m,nr_inodes=64")
    os.mkdir("/tmp/old")
    os.mkdir("/tmp/new")
    confine.call("pivot_root", b"/tmp", b"/tmp/old")
    os.chdir("/")
    _mount("tmpfs", "/new", "tmpfs", _NOSUID | _NODEV, "mode=755,size=1m,nr_inodes=4096")
    for folder in ("tmp", "var", "dev", "proc"):
        os.mkdir(f"/new/{folder}")
    os.symlink("/tmp", "/new/var/tmp")
    os.symlink("/tmp", "/new/dev/shm")
    os.symlink("/proc/self/fd", "/new/dev/fd")
    for device in DEVICES:
        _write(f"/new/dev/{device}", "")
        _mount(f"/old/dev/{device}", f"/new/dev/{device}", flags=_BIND)
    room = f"mode=1777,size={view['bytes']},nr_inodes={view['inodes']}"
    _mount("tmpfs", "/new/tmp", "tmpfs", _NOSUID | _NODEV, room)
    for path, target in view["links"]:
        os.makedirs(os.path.dirname("/new" + path), exist_ok=True)
        os.symlink(target, "/new" + path)
    for source, target in view["folders"]:
        place = "/new" + target
        if os.path.isdir("/old" + source):
            os.makedirs(place, exist_ok=True)
        else:
            os.makedirs(os.path.dirname(place), exist_ok=True)
            _write(place, "")
        _mount("/old" + source, place, flags=_BIND | _REC)
        _set_attributes(place, _RDONLY | _NOSUID | _NODEV, _RECURSIVE)
    with contextlib.suppress(PermissionError):  # a container that hides parts of its own: none is shown then
        _mount("proc", "/new/proc", "proc", _NOSUID | _NODEV | _NOEXEC)
    _set_attributes("/new", _RDONLY | _NOSUID, 0)
    os.chdir("/new")
    confine.call("pivot_root", b".", b".")
    confine.call("umount2", b".", _DETACH)
    os.chdir("/")


def _set_attributes(place: str, attributes: int, flags: int) -> None:
    wanted = ctypes.create_string_buffer(struct.pack("QQQQ", attributes, 0, 0, 0), 32)
    confine.call("syscall", _MOUNT_SETATTR, _HERE, place.encode(), flags, wanted, ctypes.c_size_t(32))


def _reap(runner: int) -> NoReturn:
    """The life of process 1: with it everything inside ends."""
    os.closerange(0, 1 << 16)
    while True:
        pid, _ = os.waitpid(-1, 0)
        if pid == runner:
            os._exit(0)
