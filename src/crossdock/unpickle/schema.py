"""The names that checkpoints are known to mention, and what a call of each means here.

Three kinds: names that crossdock computes itself (pure, bounded), names whose calls become inert `Instance`s,
and all others, whose calls are refused. Nothing is imported. Facts from torch 2.13 (`torch/_utils.py`,
`torch/storage.py`), numpy 1 and 2, megatron-core 0.11 to 0.19 and the checkpoints that they wrote.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from crossdock.unpickle.values import Charge, Global, Instance, Rule, StateDict, TensorRef, tensor_ref

INERT: Final = True

# torch dtype -> codec name and bytes per element (torch/csrc/api: c10/core/ScalarType.h)
ITEM_SIZES: Final[Mapping[str, int]] = MappingProxyType(
    {
        **dict.fromkeys(("uint8", "int8", "bool", "quint8", "qint8", "float4_e2m1fn_x2"), 1),
        **dict.fromkeys(("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz"), 1),
        **dict.fromkeys(("float8_e8m0fnu", "quint4x2", "quint2x4"), 1),
        **dict.fromkeys(("float16", "bfloat16", "int16", "uint16"), 2),
        **dict.fromkeys(("float32", "int32", "uint32", "qint32", "complex32"), 4),
        **dict.fromkeys(("float64", "int64", "uint64", "complex64"), 8),
        "complex128": 16,
    }
)
ALIASES: Final[Mapping[str, str]] = MappingProxyType(
    {"float": "float32", "double": "float64", "half": "float16", "long": "int64", "int": "int32"}
    | {"short": "int16", "cfloat": "complex64", "cdouble": "complex128", "chalf": "complex32"}
)
STORAGE_DTYPES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "FloatStorage": "float32",
        "DoubleStorage": "float64",
        "HalfStorage": "float16",
        "BFloat16Storage": "bfloat16",
        "LongStorage": "int64",
        "IntStorage": "int32",
        "ShortStorage": "int16",
        "CharStorage": "int8",
        "ByteStorage": "uint8",
        "BoolStorage": "bool",
        "ComplexFloatStorage": "complex64",
        "ComplexDoubleStorage": "complex128",
        "QUInt8Storage": "quint8",
        "QInt8Storage": "qint8",
        "QInt32Storage": "qint32",
        "QUInt4x2Storage": "quint4x2",
        "QUInt2x4Storage": "quint2x4",
        "UntypedStorage": "uint8",
    }
)


def dtype_of(value: object) -> str | None:
    """The codec name of a torch dtype ("bfloat16"), None when `value` is something else."""
    if type(value) is not Global or value.module != "torch":
        return None
    name = ALIASES.get(value.name, value.name)
    return name if name in ITEM_SIZES else None


def storage_dtype(value: object) -> str | None:
    """The codec name of a torch storage class, None when `value` is something else."""
    if type(value) is not Global or value.module not in ("torch", "torch.cuda", "torch.storage"):
        return None
    return STORAGE_DTYPES.get(value.name)


def _ordered(args: tuple[object, ...], charge: Charge) -> StateDict:
    """OrderedDict(), Counter({...}), or OrderedDict([[key, value], ...]) as Python 2 wrote it."""
    out = StateDict()
    if not args:
        return out
    (argument,) = args
    if isinstance(argument, dict):
        charge(len(argument))
        out.update(argument)  # its keys were checked when it was filled
        return out
    if type(argument) is not list and type(argument) is not tuple:
        raise ValueError("a dict made from something that is not a list of pairs")
    charge(len(argument))
    for pair in argument:
        if type(pair) not in (list, tuple) or len(pair) != 2 or type(pair[0]) is not str:
            raise ValueError("a dict made from something that is not a list of names and values")
        out[pair[0]] = pair[1]
    return out


def _defaultdict(args: tuple[object, ...], charge: Charge) -> StateDict:
    return _ordered(args[1:], charge)


def _size(args: tuple[object, ...], charge: Charge) -> tuple[object, ...]:
    argument = args[0] if args else ()
    if type(argument) is tuple:
        return argument
    if type(argument) is not list:
        raise ValueError("torch.Size of something that is not a tuple")
    charge(len(argument))
    return tuple(argument)


def _elements(args: tuple[object, ...], charge: Charge) -> list[object]:
    argument = args[0] if args else []
    if type(argument) is not list and type(argument) is not tuple:
        raise ValueError("a set made from something that is not a list")
    charge(len(argument))
    if any(type(item) not in (str, bytes, bool, type(None)) and not _small_int(item) for item in argument):
        raise ValueError("a set with elements other than text, bytes and numbers")
    return list(argument)


def _small_int(value: object) -> bool:
    return type(value) is int and -(1 << 60) < value < 1 << 60


def _set(args: tuple[object, ...], charge: Charge) -> set[object]:
    return set(_elements(args, charge))


def _frozenset(args: tuple[object, ...], charge: Charge) -> frozenset[object]:
    return frozenset(_elements(args, charge))


def _complex(args: tuple[object, ...], charge: Charge) -> complex:
    real, imag = args
    if type(real) is not float or type(imag) is not float:
        raise ValueError("a complex number of something that is not two numbers")
    return complex(real, imag)


def _encode(args: tuple[object, ...], charge: Charge) -> bytes:
    """codecs.encode(text, "latin1"): how protocol 2 spells bytes."""
    text, encoding = args
    if type(text) is not str or encoding not in ("latin1", "latin-1"):
        raise ValueError("codecs.encode of something that is not latin1 text")
    charge(len(text))
    return text.encode("latin-1")


def _bytes(args: tuple[object, ...], charge: Charge) -> bytes:
    """bytes(), bytes(b"..."), bytearray("text", "latin-1"), bytearray([1, 2]): never bytearray(length)."""
    if not args:
        return b""
    if type(args[0]) is str and len(args) == 2:
        return _encode(args, charge)
    if len(args) != 1 or type(args[0]) is not bytes:
        raise ValueError("bytes made from something that is not bytes")
    return args[0]


def _tensor_v1(args: tuple[object, ...], charge: Charge) -> TensorRef:
    storage, first, shape, strides = args[:4]
    dtype = getattr(storage, "dtype", "uint8")
    return tensor_ref(storage, dtype, ITEM_SIZES[dtype], first, _shape(shape), _shape(strides))


def _shape(value: object) -> object:
    return tuple(value) if type(value) is list and len(value) < 1024 else value


def _tensor_v3(args: tuple[object, ...], charge: Charge) -> TensorRef:
    storage, first, shape, strides, _, _, dtype = args[:7]
    name = dtype_of(dtype)
    if name is None:
        raise ValueError("a tensor whose dtype is not a torch dtype")
    return tensor_ref(storage, name, ITEM_SIZES[name], first, _shape(shape), _shape(strides))


def _parameter(args: tuple[object, ...], charge: Charge) -> object:
    if type(args[0]) is not TensorRef and type(args[0]) is not Instance:
        raise ValueError("a parameter that is not a tensor")
    return args[0]


def _from_type(args: tuple[object, ...], charge: Charge) -> object:
    """A tensor with Python attributes (rebuilt as itself) or a tensor subclass (kept as a stand-in)."""
    func, kind, inner = args[:3]
    plain = type(kind) is Global and (kind.module, kind.name) in PLAIN_TENSORS
    if plain and type(func) is Global and callable(func.rule) and type(inner) is tuple:
        if func.rule is _from_type:
            raise ValueError("a tensor type inside itself")
        return func.rule(inner, charge)
    return Instance(Global("torch._tensor", "_rebuild_from_type_v2", INERT), args)


def _reconstructor(args: tuple[object, ...], charge: Charge) -> Instance:
    """copyreg._reconstructor(cls, object, None): how protocols 0 and 1 make plain objects."""
    cls = args[0]
    if type(cls) is not Global or cls.rule is not INERT:
        raise ValueError("an object of an unknown class")
    return Instance(cls, ())


PLAIN_TENSORS: Final = frozenset(
    {("torch", "Tensor"), ("torch._tensor", "Tensor"), ("torch.nn.parameter", "Parameter")}
    | {("torch.nn", "Parameter"), ("torch.nn.parameter", "Buffer")}
)

PURE: Final[Mapping[tuple[str, str], Rule]] = MappingProxyType(
    {
        ("collections", "OrderedDict"): _ordered,
        ("collections", "Counter"): _ordered,
        ("collections", "defaultdict"): _defaultdict,
        ("torch", "Size"): _size,
        ("torch._utils", "_rebuild_tensor"): _tensor_v1,
        ("torch._utils", "_rebuild_tensor_v2"): _tensor_v1,
        ("torch._utils", "_rebuild_tensor_v3"): _tensor_v3,
        ("torch._utils", "_rebuild_parameter"): _parameter,
        ("torch._utils", "_rebuild_parameter_with_state"): _parameter,
        ("torch._tensor", "_rebuild_from_type"): _from_type,
        ("torch._tensor", "_rebuild_from_type_v2"): _from_type,
        ("_codecs", "encode"): _encode,
        ("codecs", "encode"): _encode,
        ("copyreg", "_reconstructor"): _reconstructor,
        ("copy_reg", "_reconstructor"): _reconstructor,
        **{
            (module, name): rule
            for module in ("builtins", "__builtin__")
            for name, rule in (
                ("set", _set),
                ("frozenset", _frozenset),
                ("complex", _complex),
                ("bytes", _bytes),
                ("bytearray", _bytes),
            )
        },
    }
)

# Calls of these become stand-ins: they make plain values and touch nothing.
INERT_NAMES: Final[Mapping[str, frozenset[str]]] = MappingProxyType(
    {
        "argparse": frozenset({"Namespace"}),
        "types": frozenset({"SimpleNamespace"}),
        "collections": frozenset({"deque"}),
        "functools": frozenset({"partial"}),
        "pathlib": frozenset({"Path", "PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath"}),
        "pathlib._local": frozenset({"Path", "PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath"}),
        "signal": frozenset({"Signals", "Handlers"}),
        "datetime": frozenset({"date", "datetime", "time", "timedelta", "timezone"}),
        "decimal": frozenset({"Decimal"}),
        "uuid": frozenset({"UUID", "SafeUUID"}),
        "io": frozenset({"BytesIO"}),
        "_io": frozenset({"BytesIO"}),
        "builtins": frozenset({"slice", "range", "object"}),
        "__builtin__": frozenset({"slice", "range", "xrange", "object"}),
        "torch": frozenset({"Tensor", "device", "Generator"}),
        "torch._C": frozenset({"Generator"}),
        "torch._tensor": frozenset({"Tensor"}),
        "torch.nn.parameter": frozenset({"Parameter", "Buffer", "UninitializedParameter"}),
        "torch.serialization": frozenset({"_get_layout"}),
        "torch.torch_version": frozenset({"TorchVersion"}),
        "torch._utils": frozenset(
            {
                "_rebuild_qtensor",
                "_rebuild_sparse_tensor",
                "_rebuild_sparse_csr_tensor",
                "_rebuild_nested_tensor",
            }
            | {"_rebuild_meta_tensor_no_storage", "_rebuild_wrapper_subclass", "_rebuild_xla_tensor"}
            | {"_rebuild_device_tensor_from_cpu_tensor", "_rebuild_device_tensor_from_numpy"}
        ),
        "numpy": frozenset({"dtype", "ndarray"}),
        "numpy.core.multiarray": frozenset({"_reconstruct", "scalar"}),
        "numpy._core.multiarray": frozenset({"_reconstruct", "scalar"}),
        "numpy.core.numeric": frozenset({"_frombuffer"}),
        "numpy._core.numeric": frozenset({"_frombuffer"}),
        "numpy.random._pickle": frozenset(
            {"__randomstate_ctor", "__generator_ctor", "__bit_generator_ctor", "__bit_generator_ctor2"}
        ),
        "numpy.random": frozenset({"__RandomState_ctor"}),
    }
)

# In these packages every class (a CamelCase name) is inert; functions are not, for a loader would run them.
INERT_PACKAGES: Final = (
    "megatron.",
    "transformer_engine.",
    "apex.",
    "nemo.",
    "omegaconf.",
    "lightning.",
    "lightning_fabric.",
    "pytorch_lightning.",
    "deepspeed.",
    "modelopt.",
    "transformers.",
    "tokenizers.",
    "accelerate.",
    "peft.",
    "torch.distributed.",
    "torch.optim.",
    "torch.nn.modules.",
    "torch.ao.quantization.",
    "torchao.",
    "numpy.dtypes.",
    "numpy.random.",
)

# Packages that a loader imports anyway: a mention of their functions is no news, a call is.
KNOWN_PACKAGES: Final = frozenset({package.split(".")[0] for package in INERT_PACKAGES} | {"numpy", "torch"})

# Mentioned without being called: classes and functions that are harmless to hold.
REFERENCES: Final = frozenset(
    {
        "max",
        "min",
        "sum",
        "abs",
        "len",
        "int",
        "float",
        "str",
        "bool",
        "list",
        "dict",
        "tuple",
        "object",
        "type",
    }
    | {"NoneType", "long", "unicode"}
)


def call_rule(module: str, name: str) -> Rule | bool | None:
    """What a call of `module.name` means: a function of ours, INERT, or None when it is refused."""
    pure = PURE.get((module, name))
    if pure is not None:
        return pure
    if name in INERT_NAMES.get(module, ()):
        return INERT
    if _is_class(name) and any((module + ".").startswith(package) for package in INERT_PACKAGES):
        return INERT
    return None


def is_known(module: str, name: str) -> bool:
    """True when a mention of `module.name` belongs to torch's, numpy's, Megatron's or Python's own data."""
    if call_rule(module, name) is not None:
        return True
    if module in ("builtins", "__builtin__"):
        return name in REFERENCES
    return module.split(".")[0] in KNOWN_PACKAGES


def _is_class(name: str) -> bool:
    """A class, or a class inside a class ("Outer.Inner"); a method ("Outer.load") is not."""
    return all(part.lstrip("_")[:1].isupper() and part.isidentifier() for part in name.split("."))
