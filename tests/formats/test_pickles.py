"""The pickle machine against Python's own: the same plain data, stand-ins for the rest."""

from __future__ import annotations

import argparse
import collections
import functools
import io
import pathlib
import pickle
import pickletools
import signal
import time

import numpy as np
import pytest

from crossdock import unpickle
from crossdock.errors import FormatError, UnsafePickleError
from crossdock.unpickle import Global, Instance, Limits, StateDict, TruncatedPickleError
from crossdock.unpickle.opcodes import ARGUMENTS, NAMES

PLAIN = [
    None,
    True,
    [0, 1, 255, 256, 65535, 65536, -1, 2**31 - 1, -(2**31), 2**31, 2**63, -(2**200)],
    [0.0, -1.5, 1e300, float("inf")],
    ["", "a", "ä€𝄞", "x" * 300, "x" * 70_000],
    {"a": {"b": [(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)]}, 3: None, (1, "x"): 2, b"k": 0, 1.5: 1, None: 4},
    [set(), {1, 2}, frozenset({"a"}), complex(1, -2)],
    {str(n): n for n in range(2500)},
    list(range(2500)),
]


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("value", PLAIN, ids=lambda value: type(value).__name__)
def test_plain_data(value: object, protocol: int) -> None:
    assert unpickle.load(pickle.dumps(value, protocol), where="x") == value


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_bytes(protocol: int) -> None:
    value = [b"", b"abc\x00\xff", bytes(range(256)) * 300]
    assert unpickle.load(pickle.dumps(value, protocol), where="x") == value


def test_python_2_text() -> None:
    assert unpickle.load(b"\x80\x02(U\x02hiT\x03\x00\x00\x00\xe4bct.", where="x") == ("hi", "äbc")


def test_shared_and_recursive_values_keep_their_identity() -> None:
    inner: list[object] = [1]
    inner.append(inner)
    loaded = unpickle.load(pickle.dumps([inner, inner], 4), where="x")
    assert isinstance(loaded, list)
    assert loaded[0] is loaded[1]
    assert loaded[0][1] is loaded[0]


def test_recursive_tuple() -> None:
    inside: list[object] = []
    value = (inside,)
    inside.append(value)
    loaded = unpickle.load(pickle.dumps(value, 4), where="x")
    assert isinstance(loaded, tuple)
    assert loaded[0][0] is loaded


def test_memo_that_skips_numbers() -> None:
    assert unpickle.load(b"\x80\x02]q\x02(h\x02h\x02e.", where="x", limits=Limits()) is not None
    with pytest.raises(FormatError, match="empty memo"):
        unpickle.load(b"\x80\x02]q\x02h\x01.", where="x")


def test_namespace_and_enums() -> None:
    value = argparse.Namespace(layers=4, sig=signal.SIGTERM, path=pathlib.PurePosixPath("a/b"))
    loaded = unpickle.load(pickle.dumps(value, 2), where="x")
    assert isinstance(loaded, Instance)
    assert loaded.cls == Global("argparse", "Namespace")
    fields = unpickle.attributes(loaded)
    assert fields["layers"] == 4
    assert isinstance(fields["sig"], Instance)
    assert fields["sig"].args == (15,)
    assert isinstance(fields["path"], Instance)


def test_dicts_with_attributes() -> None:
    value = collections.OrderedDict(b=1, a=2)
    value._metadata = {"v": 1}  # type: ignore[attr-defined]
    loaded = unpickle.load(pickle.dumps(value, 2), where="x")
    assert isinstance(loaded, StateDict)
    assert list(loaded.items()) == [("b", 1), ("a", 2)]
    assert unpickle.attributes(loaded) == {"_metadata": {"v": 1}}
    default = collections.defaultdict(list, {"k": [1]})
    assert unpickle.load(pickle.dumps(default, 4), where="x") == {"k": [1]}
    assert unpickle.load(pickle.dumps(collections.Counter("aab"), 4), where="x") == {"a": 2, "b": 1}


def test_functions_are_only_names() -> None:
    loaded = unpickle.load(pickle.dumps(functools.partial(max, 3), 2), where="x")
    assert isinstance(loaded, Instance)
    assert loaded.args == (Global("__builtin__", "max"),)
    assert repr(unpickle.load(b"\x80\x02cos\nsystem\n.", where="x")) == "os.system"


@pytest.mark.parametrize("protocol", [2, 4])
def test_numpy_values_are_stand_ins_with_their_bytes(protocol: int) -> None:
    array = np.arange(6, dtype="<i4").reshape(2, 3)
    loaded = unpickle.load(pickle.dumps(array, protocol), where="x")
    assert isinstance(loaded, Instance)
    assert isinstance(loaded.state, tuple)
    assert loaded.state[1] == (2, 3)
    assert loaded.state[4] == array.tobytes()
    state = np.random.RandomState(1).get_state()
    assert isinstance(unpickle.load(pickle.dumps(state, protocol), where="x"), tuple)


def test_bytes_io() -> None:
    loaded = unpickle.load(pickle.dumps(io.BytesIO(b"extra state"), 2), where="x")
    assert isinstance(loaded, Instance)
    assert isinstance(loaded.state, tuple)
    assert loaded.state[0] == b"extra state"


def test_errors_name_file_opcode_and_byte() -> None:
    with pytest.raises(UnsafePickleError) as raised:
        unpickle.load(b"\x80\x02cposix\nsystem\nX\x02\x00\x00\x00ls\x85R.", where="activation_0.pt: data.pkl")
    assert raised.value.text().splitlines() == [
        "activation_0.pt: data.pkl: byte 24 of the pickle: the pickle would call posix.system (opcode REDUCE)",
        "  to do: run `crossdock scan PATH` to list every call in this checkpoint",
    ]


def test_every_prefix_is_truncated_or_broken() -> None:
    data = pickle.dumps({"a": [1, 2.5, "text", (1, 2)], "n": argparse.Namespace(x=2**70)}, 2)
    for end in range(len(data)):
        with pytest.raises(FormatError):
            unpickle.load(data[:end], where="x")
    with pytest.raises(TruncatedPickleError):
        unpickle.load(data[:-1], where="x")


def test_limits() -> None:
    with pytest.raises(UnsafePickleError, match="more than 100 opcodes"):
        unpickle.load(pickle.dumps(list(range(200)), 2), where="x", limits=Limits(opcodes=100))
    with pytest.raises(UnsafePickleError, match="too large"):
        unpickle.load(pickle.dumps("a" * 200, 2), where="x", limits=Limits(bytes=100))
    with pytest.raises(UnsafePickleError, match="a string of 200 bytes"):
        unpickle.load(pickle.dumps("a" * 200, 3), where="x", limits=Limits(text=100))
    with pytest.raises(UnsafePickleError, match="a tuple of 200"):
        unpickle.load(pickle.dumps(tuple(range(200)), 2), where="x", limits=Limits(stack=100))


def test_stop_before_leaves_the_rest_unread() -> None:
    value = argparse.Namespace(first=[1, 2], version="1.0", late=[3], more=4)
    data = pickle.dumps(value, 4)
    loaded = unpickle.load(data, where="x", stop_before="late")
    assert unpickle.attributes(loaded) == {"first": [1, 2], "version": "1.0"}
    assert unpickle.attributes(unpickle.load(data, where="x", stop_before="never")) == vars(value)
    named = argparse.Namespace(first=1, version="late", more=[2])  # a value, not a name
    assert unpickle.attributes(unpickle.load(pickle.dumps(named, 4), where="x", stop_before="late")) == vars(named)


def test_opcode_table_is_pythons() -> None:
    assert {ord(op.code): op.name for op in pickletools.opcodes} == dict(NAMES)
    sizes = {"1": 1, "2": 2, "4": 4, "8": 8}
    for op in pickletools.opcodes:
        kind = ARGUMENTS[ord(op.code)]
        if op.arg is None:
            assert kind == ""
        elif op.arg.n >= 0:
            assert sizes[kind] == op.arg.n
        else:
            assert kind[0] == "l"


def test_speed_per_opcode() -> None:
    """About 0.4 µs an opcode here; ten times that would make large checkpoints unusable."""
    data = pickle.dumps([argparse.Namespace(a=n, b=(n, n + 1)) for n in range(20_000)], 4)
    start = time.process_time()
    unpickle.load(data, where="x")
    assert time.process_time() - start < 20_000 * 16 * 4e-6
