"""The start of a process in a sandbox: it confines itself, then tests, is tested, or looks around."""

from __future__ import annotations

import builtins
import contextlib
import importlib
import json
import os
import sys
import types
from typing import Any, NoReturn

from . import confine, namespaces
from .wire import Peer, Remote, Whole, as_class

_UNARY: dict[str, Any] = {"len": len, "bool": bool, "str": str, "repr": repr, "iter": iter, "next": next}


def main() -> NoReturn:
    """Read the setting from the command line and the job from standard input."""
    setting = json.loads(sys.argv[1])
    job = json.loads(sys.stdin.buffer.read())
    sys.argv = ["program"]
    verdict, wire = setting["verdict"], setting["wire"]
    role = {"tester": _tester, "candidate": _candidate, "probe": _probe}[setting["role"]]
    os.dup2(os.open(os.devnull, os.O_RDWR), 0)
    os.dup2(0, 1)
    try:
        if setting["sandboxed"]:
            confine.die_with_parent()
            confine.stay_on_one_core(setting["core"])
        if setting["view"] is not None:
            namespaces.enter(setting["view"])
        elif setting["sandboxed"]:
            namespaces.leave_first_process()
        if setting["sandboxed"]:
            confine.give_up_privileges()
            confine.limit(setting["limits"], strict=True)
            confine.filter_system_calls()
        else:
            confine.limit(setting["limits"], strict=False)
    except (OSError, KeyError, ValueError) as error:
        print(f"{error}", file=sys.stderr, flush=True)
        os._exit(1)
    os.dup2(0, 2)
    if setting["packages"]:
        sys.path.append(setting["packages"])
    role(job, wire, verdict)
    os._exit(0)


def _leave() -> NoReturn:
    os._exit(1)


# ---- the candidate


def _candidate(job: dict[str, Any], wire: int, verdict: int) -> None:
    module = types.ModuleType("program")
    sys.modules["program"] = module
    space = module.__dict__
    for source in job["before"]:
        with contextlib.suppress(BaseException):
            exec(compile(source, "before.py", "exec"), space)
    try:
        exec(compile(job["source"], "program.py", "exec"), space)
    except BaseException:
        _leave()
    Peer(wire, wire, lambda *asked: _do(space, *asked), _leave).listen()


def _do(space: dict[str, Any], operation: str, target: Any, value: Any) -> Any:
    """What the tests may ask of a program and its objects."""
    if operation == "kind":
        return _kind(space, value)
    if operation == "name":
        return space[value]
    if operation == "get":
        return getattr(target, value)
    if operation == "set":
        return setattr(target, *value)
    if operation == "setitem":
        target[value[0]] = value[1]
        return None
    if operation == "instance":
        return isinstance(value, target)
    return _ask(operation, target, value)


def _ask(operation: str, target: Any, value: Any) -> Any:
    """What either side may ask of an object that the other one gave it."""
    if operation == "call":
        result = target(*value[0], **value[1])
        if isinstance(target, type) and type(result) is target and target.__module__ == "program":
            return Whole(result)
        return result
    if operation == "item":
        return target[value]
    return _UNARY[operation](target)


def _kind(space: dict[str, Any], name: str) -> list[str]:
    value = space.get(name, _kind)
    if value is _kind:
        return ["nothing"]
    if isinstance(value, types.ModuleType):
        return ["module"]
    if isinstance(value, type) and issubclass(value, BaseException):
        return ["exception", *(kind.__name__ for kind in value.__mro__)]
    return ["value"]


# ---- the tester


def _tester(job: dict[str, Any], wire: int, verdict: int) -> None:
    peer = Peer(wire, wire, lambda operation, target, value: _ask(operation, target, value), _leave)
    space: dict[str, Any] = {"__name__": "tests"}
    peer.ask("kind", None, "")  # the program was read to its end
    try:
        for source in job["before"]:
            with contextlib.suppress(SyntaxError, ImportError):
                exec(compile(source, "before.py", "exec"), space)
        tests = compile(job["tests"], "tests.py", "exec")
        names = job["names"]
        for name in _undefined(job["tests"], space) if names is None else names:
            if not _bring(peer, space, name) and names is not None:
                return
        exec(tests, space)
    except BaseException:
        return
    os.write(verdict, job["nonce"].encode())


def _undefined(tests: str, space: dict[str, Any]) -> list[str]:
    """The names that the tests use and nobody but the program can define.

    A module of the standard library is not one, nor is a builtin, unless there is nothing else to test.
    """
    import ast  # seldom needed, and every program waits for the start

    tree = ast.parse(tests)
    modules = {
        node.value.id for node in ast.walk(tree) if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
    } & {*sys.stdlib_module_names, "np"}
    for name in modules - set(space):
        with contextlib.suppress(ImportError):
            space[name] = importlib.import_module("numpy" if name == "np" else name)
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    free = sorted(used - set(space) - set(dir(builtins)))
    if free:
        return free
    called = {node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    return sorted(called - set(space))


def _bring(peer: Peer, space: dict[str, Any], name: str) -> bool:
    """Define a name of the program for the tests."""
    kind, *names = peer.ask("kind", None, name)
    if kind == "exception":
        bases = [value for value in map(vars(builtins).get, names) if isinstance(value, type)]
        peer.errors[name] = space[name] = type(name, (bases[0],), {})
    elif kind == "value":
        value = space[name] = peer.ask("name", None, name)
        if type(value) is Remote and name[:1].isupper():
            as_class(value)
    return kind in ("exception", "value")


# ---- the look around


def _probe(job: dict[str, Any], wire: int, verdict: int) -> None:
    """Report what does not hold of the promises, as a list of words."""
    os.write(verdict, json.dumps(_faults(job)).encode())


def _faults(job: dict[str, Any]) -> list[str]:
    import socket

    faults = []
    if os.getuid() != 65534 or os.geteuid() != 65534 or os.getegid() != 65534:
        faults.append(f"an unprivileged user (runs as {os.geteuid()})")
    for folder in ("/", "/usr", "/usr/bin", "/var", "/dev"):
        with contextlib.suppress(OSError), open(f"{folder}/.wino-probe", "w"):
            faults.append(f"a read-only {folder}")
    shown = [path for path in job["hidden"] if os.path.lexists(path)]
    if shown:
        faults.append(f"{shown[0]} out of sight")
    room = os.statvfs("/tmp")
    if room.f_blocks * room.f_frsize > job["bytes"]:
        faults.append("a /tmp of a fixed size")
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as line:
        line.connect(("192.0.2.1", 9))  # sends nothing: whether there is a way out
        faults.append("a network of its own")
    for place, expected in (("status", "CapEff:\t0000000000000000"), ("status", "Seccomp:\t2")):
        with contextlib.suppress(FileNotFoundError), open(f"/proc/self/{place}") as file:
            if expected not in file.read():
                faults.append(expected.split(":")[0])
    with contextlib.suppress(FileNotFoundError):
        if sum(name.isdigit() for name in os.listdir("/proc")) > 4:
            faults.append("processes of its own")
    return faults
