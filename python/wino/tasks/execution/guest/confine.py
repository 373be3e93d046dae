"""What a process gives up for good before it runs a program: privileges, system calls, resources."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import os
import platform
import resource
import struct
from typing import Any

_DUMPABLE, _DEATH_SIGNAL, _SECCOMP, _BOUNDING, _NO_NEW_PRIVILEGES, _AMBIENT = 4, 1, 22, 24, 38, 47

# Numbers of the system calls, x86-64 and ARM64. Denied is what reaches other processes' memory, other namespaces, old
# and new corners of the kernel, or memory that no limit counts.
_DENIED = {
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "pidfd_getfd": (438, 438),
    "kcmp": (312, 272),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "unshare": (272, 97),
    "setns": (308, 268),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "shmget": (29, 194),
    "semget": (64, 190),
    "msgget": (68, 186),
    "mq_open": (240, 180),
    "sched_setaffinity": (203, 122),
    "sched_setattr": (314, 274),
    "sched_setscheduler": (144, 119),
    "personality": (135, 92),
    "quotactl": (179, 60),
    "syslog": (103, 116),
    "fanotify_init": (300, 262),
    "move_pages": (279, 239),
    "mbind": (237, 235),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "kexec_load": (246, 104),
}
_CLONE, _CLONE3, _SOCKET, _SOCKETPAIR = (56, 220), (435, 435), (41, 198), (53, 199)
_NEW_NAMESPACES = 0x7E020000
_FAMILIES = (1, 2, 10)  # Unix, IPv4, IPv6: a virtual machine's sockets, for one, know no network namespace
_MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}


@functools.cache
def _libc() -> Any:
    return ctypes.CDLL(None, use_errno=True)


def call(name: str, *arguments: Any) -> int:
    """A function of the C library, whose failure is an ``OSError`` that names it."""
    whole = [ctypes.c_long(value) if type(value) is int else value for value in arguments]
    result = int(getattr(_libc(), name)(*whole))
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
    return result


def set_dumpable(on: bool) -> None:
    call("prctl", _DUMPABLE, int(on), 0, 0, 0)


def die_with_parent() -> None:
    call("prctl", _DEATH_SIGNAL, 9, 0, 0, 0)


def give_up_privileges() -> None:
    """No capability, in no set, and no program that is run gives one back."""
    call("prctl", _NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    with contextlib.suppress(OSError):  # kernels before 4.3
        call("prctl", _AMBIENT, 4, 0, 0, 0)
    bound_privileges()
    header = ctypes.create_string_buffer(struct.pack("Ii", 0x20080522, 0))
    call("capset", header, ctypes.create_string_buffer(24))


def bound_privileges() -> None:
    """Empty the bounding set, which takes a capability that a change of the user loses."""
    for number in range(64):
        with contextlib.suppress(OSError):  # beyond the last one, or already without the right to drop them
            call("prctl", _BOUNDING, number, 0, 0, 0)


def filter_system_calls() -> None:
    """Denied calls fail with EPERM, ``clone3`` with ENOSYS (its arguments cannot be looked at; ``clone`` is used)."""
    column, machine = _MACHINES[platform.machine()]
    program: list[tuple[int, int, int, int]] = []

    def load(offset: int) -> None:
        program.append((0x20, 0, 0, offset))

    def allow() -> None:
        program.append((0x06, 0, 0, 0x7FFF0000))

    def fail(number: int) -> None:
        program.append((0x06, 0, 0, 0x00050000 | number))

    load(4)
    program.append((0x15, 1, 0, machine))
    fail(errno.EPERM)
    load(0)
    program.append((0x35, 0, 1, 0x40000000))  # the x32 numbers of x86-64
    fail(errno.EPERM)
    for numbers in _DENIED.values():
        program.append((0x15, 0, 1, numbers[column]))
        fail(errno.EPERM)
    program.append((0x15, 0, 1, _CLONE3[column]))
    fail(errno.ENOSYS)
    program.append((0x15, 0, 4, _CLONE[column]))
    load(16)
    program.append((0x45, 0, 1, _NEW_NAMESPACES))
    fail(errno.EPERM)
    allow()
    for numbers in (_SOCKET, _SOCKETPAIR):
        program.append((0x15, 0, 3 + len(_FAMILIES), numbers[column]))
        load(16)
        for left, family in enumerate(reversed(_FAMILIES)):
            program.append((0x15, len(_FAMILIES) - left, 0, family))
        fail(errno.EAFNOSUPPORT)
        allow()
    allow()
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in program))
    described = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(program), ctypes.addressof(code)))
    call("prctl", _SECCOMP, 2, described)


def limit(limits: dict[str, int], strict: bool) -> None:
    """Set resource limits by name. ``strict``: one that cannot be set is an error."""
    for name, value in limits.items():
        try:
            resource.setrlimit(getattr(resource, "RLIMIT_" + name), (value, value))
        except (ValueError, OSError, AttributeError):
            if strict:
                raise


def stay_on_one_core(seed: int) -> None:
    """So that the processor time of all processes together is bounded by the wall's."""
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[seed % len(cores)]})
