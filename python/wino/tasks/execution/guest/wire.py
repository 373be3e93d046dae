"""Calls between two processes that do not trust each other, as plain data.

A frame is four bytes of length and JSON in ASCII. It holds no float, and containers never nest in it: they are numbered
nodes that refer to each other, so that sharing and cycles survive. Only values of exactly a builtin type (and of a few
of the standard library: ``deque``, ``OrderedDict``, ``Counter``, ``Decimal``, ``Fraction``, dates) cross; an object of
a derived class crosses as the plain value below it. Everything else crosses as a handle, a :class:`Remote`, that is
equal to itself alone. Lists, dicts and sets among the arguments of a call are brought up to date when it returns.
"""

from __future__ import annotations

import builtins
import collections
import contextlib
import datetime
import decimal
import fractions
import json
import os
import struct
from collections.abc import Callable, Iterator
from typing import Any, NoReturn, cast

LONGEST = 16 << 20
"""Bytes of a frame."""

_DEEPEST = 400
_MOST_HANDLES = 100_000

_MUTABLE: dict[str, type] = {
    "list": list,
    "dict": dict,
    "set": set,
    "bytearray": bytearray,
    "deque": collections.deque,
    "ordered": collections.OrderedDict,
    "counter": collections.Counter,
}
_FIXED: dict[str, tuple[type, Callable[[Any], list[Any]], Callable[..., Any]]] = {
    "tuple": (tuple, list, lambda *items: items),
    "frozenset": (frozenset, list, lambda *items: frozenset(items)),
    "range": (range, lambda value: [value.start, value.stop, value.step], range),
    "slice": (slice, lambda value: [value.start, value.stop, value.step], slice),
    "complex": (complex, lambda value: [value.real, value.imag], complex),
    "decimal": (decimal.Decimal, lambda value: [str(value)], decimal.Decimal),
    "fraction": (
        fractions.Fraction,
        lambda value: [value.numerator, value.denominator],
        fractions.Fraction,
    ),
    "datetime": (datetime.datetime, lambda value: [value.isoformat()], datetime.datetime.fromisoformat),
    "date": (datetime.date, lambda value: [value.isoformat()], datetime.date.fromisoformat),
    "time": (datetime.time, lambda value: [value.isoformat()], datetime.time.fromisoformat),
    "timedelta": (
        datetime.timedelta,
        lambda value: [value.days, value.seconds, value.microseconds],
        datetime.timedelta,
    ),
}
_KIND_OF = {kind: name for name, kind in _MUTABLE.items()} | {row[0]: name for name, row in _FIXED.items()}
_MAPPINGS = ("dict", "ordered", "counter")
_BASES = (int, float, str, bytes, complex, tuple, list, dict, set, frozenset, bytearray)
_EXCEPTIONS = {
    name: value
    for name, value in vars(builtins).items()
    if isinstance(value, type) and issubclass(value, BaseException)
}
_TYPES: dict[str, Any] = {
    kind.__name__: kind for kind in (*_BASES, bool, object, type, type(None), range, slice)
} | _EXCEPTIONS
_NAME_OF = {kind: name for name, kind in _TYPES.items()}

PLAIN_METHODS = frozenset(name for kind in _BASES for name in dir(kind))
"""What only values of builtin types answer for: an object that a function returned is not asked for it."""


class WireError(Exception):
    """What came cannot be a frame, or what should go cannot be one."""


class Remote:
    """An object of the other process. Unary questions are passed on; comparing and reckoning with it is not."""

    __slots__ = ("_class", "_made", "_number", "_peer")

    def __init__(self, peer: Peer, number: int) -> None:
        object.__setattr__(self, "_peer", peer)
        object.__setattr__(self, "_number", number)
        object.__setattr__(self, "_made", False)
        object.__setattr__(self, "_class", False)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        result = self._peer.ask("call", self, (args, kwargs))
        if self._class and type(result) is Remote:
            object.__setattr__(result, "_made", True)
        return result

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or (name in PLAIN_METHODS and not self._made):
            raise AttributeError(f"an object of the program has no attribute {name!r} that the tests may ask for")
        return self._peer.ask("get", self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._peer.ask("set", self, (name, value))

    def __getitem__(self, key: Any) -> Any:
        return self._peer.ask("item", self, key)

    def __setitem__(self, key: Any, value: Any) -> None:
        self._peer.ask("setitem", self, (key, value))

    def __len__(self) -> int:
        return _exactly(int, self._peer.ask("len", self, None))

    def __bool__(self) -> bool:
        return _exactly(bool, self._peer.ask("bool", self, None))

    def __str__(self) -> str:
        return _exactly(str, self._peer.ask("str", self, None))

    def __repr__(self) -> str:
        return _exactly(str, self._peer.ask("repr", self, None))

    def __iter__(self) -> Iterator[Any]:
        source = self._peer.ask("iter", self, None)
        return iter(source) if type(source) is not Remote else source._items()

    def __next__(self) -> Any:
        return self._peer.ask("next", self, None)

    def _items(self) -> Iterator[Any]:
        while True:
            try:
                item = self._peer.ask("next", self, None)
            except StopIteration:
                return
            yield item

    def __instancecheck__(self, value: Any) -> bool:
        return type(value) is Remote and _exactly(bool, self._peer.ask("instance", self, value))

    def __copy__(self) -> Remote:
        return self

    def __deepcopy__(self, memo: Any) -> Remote:
        return self


class Whole:
    """Around an object that is to cross as a handle although a plain value is below it."""

    def __init__(self, value: Any) -> None:
        self.value = value


def as_class(remote: Remote) -> Remote:
    """The handle of a name that the tests take for a class: what calling it makes has its methods asked for."""
    object.__setattr__(remote, "_class", True)
    return remote


def _exactly(kind: type, value: Any) -> Any:
    if type(value) is not kind:
        raise TypeError(f"expected {kind.__name__} from the program, got {type(value).__name__}")
    return value


class Peer:
    """One end of the line.

    ``serve(operation, target, value)`` does what the other end asks for, on an object of ours. ``broken`` is called
    when the line is lost or talks nonsense, and does not return.
    """

    def __init__(
        self, reader: int, writer: int, serve: Callable[[str, Any, Any], Any], broken: Callable[[], NoReturn]
    ) -> None:
        self._reader, self._writer, self._serve, self._broken = reader, writer, serve, broken
        self._ours: list[Any] = []
        self._numbers: dict[int, int] = {}
        self._theirs: dict[int, Remote] = {}
        self.errors: dict[str, type[BaseException]] = {}

    def ask(self, operation: str, target: Remote | None, value: Any) -> Any:
        """What the other end answers; what it raises is raised here, as the nearest exception known here."""
        writing = _Writing(self)
        on = None if target is None else target._number
        self._send({"op": operation, "on": on, "value": writing.refer(value, 0), "nodes": writing.nodes})
        while True:
            message = self._receive()
            if "op" in message:
                self._answer(message)
                continue
            try:
                result, failed = self._result(message, writing)
            except Exception:
                self._broken()
            if failed is not None:
                raise failed
            return result

    def listen(self) -> NoReturn:
        """Answer until the line is closed."""
        while True:
            self._answer(self._receive())

    def export(self, value: Any) -> list[Any]:
        """The reference under which the other end knows an object of ours."""
        number = self._numbers.get(id(value))
        if number is None:
            if len(self._ours) >= _MOST_HANDLES:
                raise WireError(f"expected at most {_MOST_HANDLES} objects that are not plain data")
            number = self._numbers[id(value)] = len(self._ours)
            self._ours.append(value)
        return ["mine", number]

    def known(self, value: Any) -> bool:
        return id(value) in self._numbers

    def remote(self, number: Any) -> Remote:
        if type(number) is not int or not 0 <= number < _MOST_HANDLES:
            raise WireError("a handle that cannot be")
        return self._theirs.setdefault(number, Remote(self, number))

    def own(self, number: Any) -> Any:
        if type(number) is not int or not 0 <= number < len(self._ours):
            raise WireError("a handle that was never given")
        return self._ours[number]

    def _answer(self, message: dict[str, Any]) -> None:
        try:
            given = _read(self, message["nodes"], [])
            value = _follow(self, message["value"], given.values, [])
            operation, number = message["op"], message["on"]
            target = None if number is None else self.own(number)
            if type(operation) is not str:
                raise WireError("an operation that is no word")
        except Exception:
            self._broken()
        before = {index: _shallow(given.values[index]) for index in given.mutable}
        writing = _Writing(self, {id(given.values[index]): index for index in given.mutable})
        try:
            result = self._serve(operation, target, value)
            reply: dict[str, Any] = {"value": writing.refer(result, 0)}
            changed = [i for i, old in before.items() if not _same(old, _shallow(given.values[i]))]
            reply["after"] = [[i, writing.content(given.values[i], 0)] for i in changed]
            frame = _frame({**reply, "nodes": writing.nodes})
        except BaseException as error:
            frame = self._failure(error)
        self._write(frame)

    def _failure(self, error: BaseException) -> bytes:
        names = [kind.__name__ for kind in type(error).__mro__]
        try:
            writing = _Writing(self)
            arguments = writing.refer(tuple(error.args), 0)
            return _frame({"error": names, "value": arguments, "nodes": writing.nodes})
        except BaseException:
            return _frame({"error": names, "value": ["n", 0], "nodes": [["tuple"]]})

    def _result(self, message: dict[str, Any], asked: _Writing) -> tuple[Any, BaseException | None]:
        nodes = _read(self, message["nodes"], asked.kept)
        value = _follow(self, message["value"], nodes.values, asked.kept)
        if "error" in message:
            return None, self._error(message["error"], value)
        for index, node in message["after"]:
            old = asked.kept[index]
            if type(index) is not int or index < 0 or _MUTABLE.get(node[0]) is not type(old):
                raise WireError("an argument that became something else")
            cast(Any, old).clear()
            _fill(old, node, lambda item: _follow(self, item, nodes.values, asked.kept))
        return value, None

    def _error(self, names: Any, arguments: Any) -> BaseException:
        for name in names:
            kind = self.errors.get(name) or _EXCEPTIONS.get(name)
            if kind is not None:
                with contextlib.suppress(Exception):
                    return kind(*arguments)
        return RuntimeError("an exception without a name")

    def _send(self, message: dict[str, Any]) -> None:
        self._write(_frame(message))

    def _write(self, frame: bytes) -> None:
        rest = memoryview(frame)
        try:
            while rest:
                rest = rest[os.write(self._writer, rest) :]
        except OSError:
            self._broken()

    def _receive(self) -> dict[str, Any]:
        try:
            (size,) = struct.unpack(">I", self._read(4))
            if size > LONGEST:
                raise WireError(f"expected a frame of at most {LONGEST} bytes, got {size}")
            message = json.loads(self._read(size).decode("ascii"), parse_float=_refuse, parse_constant=_refuse)
            if type(message) is not dict:
                raise WireError("a frame that is no object")
            return message
        except Exception:
            self._broken()

    def _read(self, size: int) -> bytes:
        parts = []
        while size:
            part = os.read(self._reader, min(size, 1 << 20))
            if not part:
                raise WireError("the line is closed")
            parts.append(part)
            size -= len(part)
        return b"".join(parts)


class _Writing:
    """The nodes of a frame under construction. ``given``: containers that the other end has, by identity."""

    def __init__(self, peer: Peer, given: dict[int, int] | None = None) -> None:
        self.nodes: list[list[Any]] = []
        self.kept: list[Any] = []
        self._peer = peer
        self._given = given or {}
        self._at: dict[int, int] = {}

    def refer(self, value: Any, depth: int) -> Any:
        kind = type(value)
        if value is None or kind is bool or kind is str:
            return value
        if kind is int:
            return value if abs(value) < 1 << 53 else ["i", hex(value)]
        if kind is float:
            return ["f", value.hex()]
        if kind is bytes:
            return ["b", value.hex()]
        if kind is Remote:
            return ["yours", value._number]
        if kind is Whole:
            return self._peer.export(value.value)
        if id(value) in self._given:
            return ["a", self._given[id(value)]]
        if id(value) in self._at:
            return ["n", self._at[id(value)]]
        if depth > _DEEPEST:
            raise WireError(f"expected data nested at most {_DEEPEST} deep")
        if kind in _KIND_OF:
            return self._node(value, depth)
        if kind is type and value in _NAME_OF:
            return ["t", _NAME_OF[value]]
        if not self._peer.known(value):
            plain = _plain(value)
            if plain is not value:
                self.kept.append(plain)  # its id must stay taken while the frame is written
                self.nodes.append(["none"])
                return self.refer(plain, depth + 1)
        return self._peer.export(value)

    def _node(self, value: Any, depth: int) -> list[Any]:
        name = _KIND_OF[type(value)]
        if name in _MUTABLE:  # known before its items, which may hold it
            index = self._add(value)
            self.nodes[index] = self.content(value, depth)
        else:
            items = [self.refer(item, depth + 1) for item in _FIXED[name][1](value)]
            index = self._add(value)
            self.nodes[index] = [name, *items]
        return ["n", index]

    def content(self, value: Any, depth: int) -> list[Any]:
        """A mutable container's kind and items."""
        name = _KIND_OF[type(value)]
        if name == "bytearray":
            return [name, value.hex()]
        flat = [part for pair in value.items() for part in pair] if name in _MAPPINGS else list(value)
        return [name, *(self.refer(item, depth + 1) for item in flat)]

    def _add(self, value: Any) -> int:
        self._at[id(value)] = len(self.nodes)
        self.nodes.append([])
        self.kept.append(value)
        return len(self.nodes) - 1


def _plain(value: Any) -> Any:
    """The plain value below an object of a derived class or a number of NumPy's, else the object itself."""
    if isinstance(value, type):
        return value
    if type(value).__module__ == "numpy" and getattr(value, "shape", None) == ():
        return value.item()
    if isinstance(value, collections.defaultdict):
        return dict(value)
    bases: tuple[Any, ...] = (collections.OrderedDict, collections.Counter, collections.deque, *_BASES)
    for base in bases:
        if isinstance(value, base):
            if base is complex:
                return complex(value.real, value.imag)
            if base is bytes:
                return bytes(bytearray(value))
            convert: Any = {int: int.__int__, float: float.__float__, str: str.__str__}.get(base, base)
            return convert(value)
    return value


class _Nodes:
    def __init__(self) -> None:
        self.values: list[Any] = []
        self.mutable: list[int] = []


_MISSING = object()


def _read(peer: Peer, raw: Any, kept: list[Any]) -> _Nodes:
    """Build the values of a frame's nodes. ``kept``: the containers of the frame that this one answers."""
    nodes = _Nodes()
    for index, node in enumerate(raw):
        kind = _MUTABLE.get(node[0])
        if kind is not None:
            nodes.mutable.append(index)
        nodes.values.append(_MISSING if kind is None else kind())
    for index, node in enumerate(raw):  # a fixed container comes behind the fixed ones in it
        if node[0] in _FIXED:
            items = [_follow(peer, item, nodes.values, kept) for item in node[1:]]
            nodes.values[index] = _FIXED[node[0]][2](*items)
        elif node[0] not in _MUTABLE and node != ["none"]:
            raise WireError("a node of no known kind")
    for index in nodes.mutable:
        _fill(nodes.values[index], raw[index], lambda item: _follow(peer, item, nodes.values, kept))
    return nodes


def _fill(value: Any, node: list[Any], follow: Callable[[Any], Any]) -> None:
    if node[0] == "bytearray":
        value.extend(bytes.fromhex(node[1]))
    elif node[0] in _MAPPINGS:
        for key, item in zip(node[1::2], node[2::2], strict=True):
            value[follow(key)] = follow(item)
    elif node[0] == "set":
        value.update([follow(item) for item in node[1:]])
    else:
        value.extend([follow(item) for item in node[1:]])


def _follow(peer: Peer, item: Any, values: list[Any], kept: list[Any]) -> Any:
    if item is None or type(item) in (bool, int, str):
        return item
    tag, what = item
    if tag == "mine":
        return peer.remote(what)
    if tag in ("n", "a"):
        source = values if tag == "n" else kept
        if type(what) is not int or what < 0 or source[what] is _MISSING:
            raise WireError("a reference to nothing")
        return source[what]
    if tag == "yours":
        return peer.own(what)
    if tag == "t":
        return _TYPES[what]
    if tag == "i":
        return int(what, 16)
    if tag == "f":
        return float.fromhex(what)
    if tag == "b":
        return bytes.fromhex(what)
    raise WireError("a value of no known kind")


def _shallow(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [part for pair in value.items() for part in pair]
    return list(value)


def _same(old: list[Any], new: list[Any]) -> bool:
    return len(old) == len(new) and all(a is b for a, b in zip(old, new, strict=True))


def _frame(message: dict[str, Any]) -> bytes:
    data = json.dumps(message, separators=(",", ":")).encode("ascii")
    if len(data) > LONGEST:
        raise WireError(f"expected data of at most {LONGEST} bytes, got {len(data)}")
    return struct.pack(">I", len(data)) + data


def _refuse(text: str) -> NoReturn:
    raise WireError("a number that is no integer")
