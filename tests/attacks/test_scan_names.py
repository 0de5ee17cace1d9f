"""Which names a pickle may mention and call: exactly those that do nothing, and never with a callable in hand."""

from __future__ import annotations

import argparse
import collections
import decimal
import fractions
import io
import pathlib
import pickle
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pickle_corpus import stack_global, text

from crossdock.scan import scan


def name(module: str, attribute: str) -> bytes:
    return text(module) + text(attribute) + b"\x93"


def pickled(*parts: bytes) -> bytes:
    return b"\x80\x04" + b"".join(parts) + b"."


def severities(tmp_path: Path, data: bytes) -> set[str]:
    file = tmp_path / "a.pkl"
    file.write_bytes(data)
    return {finding.severity for finding in scan(file).findings}


SYSTEM = name("posix", "system")
GIVEN_A_CALLABLE = {
    "a rebuilding function": name("torch._tensor", "_rebuild_from_type_v2")
    + b"(" + name("builtins", "set") + name("torch", "Tensor") + text("x") + b"\x85}tR",
    "itself": name("torch._tensor", "_rebuild_from_type_v2")
    + b"(" + name("torch._tensor", "_rebuild_from_type_v2") + name("torch", "Tensor") + b")}tR",
    "a class where a tensor's is meant": name("torch._utils", "_rebuild_wrapper_subclass")
    + b"(" + name("argparse", "Namespace") + b"N))K\x00NNNtR",
    "a generator's constructor": name("numpy.random._pickle", "__generator_ctor")
    + text("touch pwned") + name("builtins", "set") + b"\x86R",
    "a bit generator's class": name("numpy.random._pickle", "__bit_generator_ctor")
    + name("argparse", "Namespace") + b"\x85R",
    "a default": name("collections", "defaultdict") + name("io", "BytesIO") + b"\x85R",
    "an array's class": name("numpy._core.multiarray", "_reconstruct")
    + name("argparse", "Namespace") + b")C\x01b\x87R",
    "an object's class": name("copyreg", "_reconstructor") + name("io", "BytesIO") + name("io", "BytesIO") + b"N\x87R",
    "in a tuple": name("torch._tensor", "_rebuild_from_type_v2")
    + b"(" + name("torch._utils", "_rebuild_tensor_v2") + name("torch", "Tensor")
    + name("builtins", "set") + b"\x85}tR",
    "anywhere": name("collections", "OrderedDict") + name("builtins", "set") + b"\x85R",
}  # fmt: skip


@pytest.mark.parametrize("kind", GIVEN_A_CALLABLE)
def test_a_callable_that_is_given_a_callable(kind: str, tmp_path: Path) -> None:
    assert "call" in severities(tmp_path, pickled(GIVEN_A_CALLABLE[kind]))


OTHERS = [
    "functools.partial", "functools.reduce", "builtins.map", "builtins.filter", "builtins.type", "builtins.getattr",
    "collections.ChainMap", "weakref.ref", "types.FunctionType", "torch.save", "torch.load", "torch.jit.load",
    "torch._C.import_ir_module", "torch.optim.adamw.AdamW", "torch.nn.modules.linear.Linear",
    "torch.utils.data.DataLoader", "torch.distributed.TCPStore",
    "torch.distributed.elastic.multiprocessing.subprocess_handler.subprocess_handler.SubprocessHandler",
    "transformers.training_args.Path", "transformers.trainer_utils.Path", "megatron.core.enums.enum",
    "megatron.core.timers.Timers", "numpy.load", "numpy.memmap", "numpy.lib.npyio.NpzFile",
    "numpy.random.Generator", "lightning.fabric.Fabric", "torch.OrderedDict",
    "torch.distributed.checkpoint.filesystem.Path", "collections.abc.Callable", "argparse.FileType", "io.FileIO",
]  # fmt: skip


@pytest.mark.parametrize("qualified", OTHERS)
def test_no_other_name_of_known_packages_is_clean(qualified: str, tmp_path: Path) -> None:
    module, _, attribute = qualified.rpartition(".")
    assert "call" in severities(tmp_path, stack_global(module, attribute))
    assert "call" in severities(tmp_path, pickled(name(module, attribute), b")\x81"))
    assert "import" in severities(tmp_path, pickled(b"]", name(module, attribute), b"a"))


def test_a_class_that_acts_when_called_may_only_be_made_without_its_init(tmp_path: Path) -> None:
    arguments = name("transformers.training_args", "TrainingArguments")
    assert severities(tmp_path, pickled(arguments, b")\x81}" + text("lr") + b"K\x01sb")) == set()
    assert "call" in severities(tmp_path, pickled(arguments, text("out") + b"\x85R"))
    assert "call" in severities(tmp_path, pickled(arguments, b")R"))
    assert "call" in severities(tmp_path, pickled(arguments, text("out") + b"\x85\x81"))


HOOKS = {
    "__setstate__ in a dict": b"}" + text("__setstate__") + name("builtins", "set") + b"sb" + text("x") + b"b",
    "__setstate__ in protocol 0": b"}S'__setst\\x61te__'\n" + name("builtins", "set") + b"sb" + text("x") + b"b",
    "append": b"}" + text("append") + name("builtins", "set") + b"sb" + text("x") + b"a",
    "extend": b"}" + text("extend") + name("builtins", "set") + b"sb(" + text("x") + b"e",
    "add": b"}" + text("add") + name("builtins", "set") + b"sb(" + text("x") + b"\x90",
}


@pytest.mark.parametrize("kind", HOOKS)
def test_an_attribute_that_a_later_opcode_calls(kind: str, tmp_path: Path) -> None:
    assert "call" in severities(tmp_path, pickled(name("argparse", "Namespace"), b")R", HOOKS[kind]))


def test_a_name_behind_another_number_of_the_memo(tmp_path: Path) -> None:
    """A number that Python reads and a careless reader does not: refused, or read alike."""
    program = name("collections", "OrderedDict") + b"q\x010" + name("builtins", "set") + b"p1_0\n0"
    assert severities(tmp_path, pickled(program + b"h\x01)R")) == {"broken"}


def test_bytes_that_a_loader_would_unpickle_in_turn(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.save(torch.ones(3).untyped_storage(), buffer, _use_new_zipfile_serialization=False)
    call = name("torch.storage", "_load_from_bytes")
    assert severities(tmp_path, pickle.dumps(torch.ones(3), 4)) == set()
    assert "call" in severities(tmp_path, pickle.dumps(torch.ones(3), 2))  # the bytes are made while loading
    assert severities(tmp_path, pickled(call, pickle.dumps(buffer.getvalue(), 4)[11:-2], b"\x85R")) <= {
        "broken",
        "call",
    }
    hostile = pickled(SYSTEM, text("touch pwned"), b"\x85R")
    assert "call" in severities(tmp_path, pickled(call, b"C" + bytes([len(hostile)]) + hostile, b"\x85R"))


def jagged() -> torch.Tensor:
    return torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged)


def with_attribute() -> torch.Tensor:
    tensor = torch.ones(2)
    tensor.note = "x"  # type: ignore[attr-defined]
    return tensor


DATA: dict[str, Callable[[], Any]] = {
    "fraction": lambda: fractions.Fraction(1, 3),
    "decimal": lambda: decimal.Decimal("1.5"),
    "uuid": uuid.uuid4,
    "path": lambda: pathlib.PurePosixPath("/a"),
    "namespace": lambda: argparse.Namespace(a=1),
    "containers": lambda: [collections.deque([1], 3), collections.defaultdict(list, a=[1]), collections.Counter("aa")],
    "masked array": lambda: np.ma.masked_array([1, 2], [0, 1]),
    "generator": lambda: np.random.default_rng(0),
    "random state": lambda: np.random.RandomState(0),
    "object array": lambda: np.array([1, "a", None], object),
    "numpy scalar": lambda: np.float32(1),
    "jagged": jagged,
    "attribute": with_attribute,
    "parameter": lambda: torch.nn.Parameter(torch.ones(2)),
    "quantized": lambda: torch.quantize_per_tensor(torch.ones(4), 0.1, 0, torch.qint8),
    "sparse": lambda: torch.ones(4).to_sparse(),
    "meta": lambda: torch.ones(2, device="meta"),
    "fp8": lambda: torch.ones(2).to(torch.float8_e4m3fn),
    "optimizer": lambda: torch.optim.AdamW(torch.nn.Linear(2, 2).parameters()).state_dict(),
    "dtypes": lambda: [torch.float32, torch.strided, torch.device("cpu"), torch.Size([1])],
}


@pytest.mark.parametrize("kind", DATA)
@pytest.mark.parametrize("protocol", [2, 4])
def test_data_is_clean(kind: str, protocol: int, tmp_path: Path) -> None:
    torch.save(DATA[kind](), tmp_path / "a.pt", pickle_protocol=protocol)
    assert scan(tmp_path).clean, scan(tmp_path).findings
    torch.save(DATA[kind](), tmp_path / "a.pt", pickle_protocol=protocol, _use_new_zipfile_serialization=False)
    assert scan(tmp_path).clean, scan(tmp_path).findings
    assert scan(tmp_path).files == 1


@pytest.mark.parametrize("protocol", range(6))
def test_plain_pickles_of_every_protocol_are_clean(protocol: int, tmp_path: Path) -> None:
    value = {"a": [1, 2.5, None, True, "text", b"bytes", (1, (2,))], "b": {3}, "c": argparse.Namespace(x=1)}
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(value, protocol))
    assert scan(tmp_path).clean, scan(tmp_path).findings
