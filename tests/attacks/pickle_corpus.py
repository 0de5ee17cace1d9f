"""Pickles that break careless readers, as bytes: memory, time, calls. Never load them with `pickle`.

The first twelve broke a C unpickler with stand-in classes (exponential hashes, a memo that grows to an index,
buffers allocated from a declared size); the others aim at a reader with limits.
"""

from __future__ import annotations

import struct

COMMAND = "touch pwned"


def text(value: str) -> bytes:
    """A BINUNICODE."""
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def call(module: str, name: str, argument: str = COMMAND) -> bytes:
    """A protocol 2 pickle that calls module.name(argument)."""
    return b"\x80\x02c%s\n%s\n" % (module.encode(), name.encode()) + text(argument) + b"\x85R."


def stack_global(module: str, name: str, argument: str = COMMAND) -> bytes:
    """The same in protocol 4, where the name comes from the stack."""
    return b"\x80\x04" + text(module) + text(name) + b"\x93" + text(argument) + b"\x85R."


def doubled_lists(times: int) -> bytes:
    """A list that holds the one before twice, many times over: 2**times leaves."""
    out = bytearray(b"\x80\x04]\x94")
    for index in range(times):
        out += b"]\x94(" + b"h%c" % index * 2 + b"e"
    return bytes(out)


def doubled_tuples(times: int) -> bytes:
    """The same with tuples through the memo: no DUP needed."""
    out = bytearray(b"\x80\x04)\x94")
    for index in range(times):
        reference = b"h%c" % index
        out += reference + reference + b"\x86\x94"
    return bytes(out)


BOMBS = {
    "LONG_BINPUT to 2^31-1": b"\x80\x02}r\xff\xff\xff\x7f.",
    "LONG_BINPUT to 2^28": b"\x80\x02}r\x00\x00\x00\x10.",
    "BYTEARRAY8 of 8 GB": b"\x80\x05\x96" + struct.pack("<Q", 8 << 30) + b"xx.",
    "BINUNICODE8 of 8 GB": b"\x80\x04\x8d" + struct.pack("<Q", 8 << 30) + b"xx.",
    "FRAME of 8 GB": b"\x80\x04\x95" + struct.pack("<Q", 8 << 30) + b"N.",
    "5,000,000 nested lists": b"\x80\x02" + b"]" * 5_000_000 + b"a" * 4_999_999 + b".",
    "tuples doubled 60 times with DUP": b"\x80\x02)" + b"2\x86" * 60 + b".",
    "an integer of 8 MB as key": b"\x80\x02}\x8b" + struct.pack("<i", 8 << 20) + b"\x7f" * (8 << 20) + b"Ns.",
    "a key of tuples doubled 40 times": b"\x80\x02}N" + b"2\x86" * 40 + b"Ns.",
    "os.system": call("os", "system"),
    "bytearray(2^31-1)": b"\x80\x02c__builtin__\nbytearray\nJ\xff\xff\xff\x7f\x85R.",
    "an integer of 10^6 digits": b"\x80\x02L" + b"9" * 1_000_000 + b"L\n.",
    "posix.system": call("posix", "system"),
    "nt.system": call("nt", "system"),
    "builtins.eval": stack_global("builtins", "eval", "__import__('os').system('touch pwned')"),
    "builtins.exec": call("__builtin__", "exec", "open('pwned', 'w')"),
    "builtins.getattr": stack_global("builtins", "getattr"),
    "builtins.open": stack_global("builtins", "open", "pwned"),
    "subprocess.Popen": stack_global("subprocess", "Popen"),
    "torch.hub.load": call("torch.hub", "load", "someone/somewhere"),
    "torch.load": call("torch.serialization", "load", "pwned"),
    "torch.storage._load_from_bytes": call("torch.storage", "_load_from_bytes"),
    "numpy's runstring": call("numpy.testing._private.utils", "runstring"),
    "a function of megatron": call("megatron.training.initialize", "initialize_megatron"),
    "a method of a known class": stack_global("transformers.Trainer", "Trainer.train"),
    "the result of functools.partial": b"\x80\x02cfunctools\npartial\ncos\nsystem\n\x85R"
    + text(COMMAND) + b"\x85R.",
    "NEWOBJ of an unknown class": b"\x80\x02cevil\nPayload\n)\x81.",
    "NEWOBJ_EX": b"\x80\x04" + text("os") + text("system") + b"\x93" + text(COMMAND) + b"\x85}\x92.",
    "INST": b"(X" + struct.pack("<I", len(COMMAND)) + COMMAND.encode() + b"ios\nsystem\n.",
    "OBJ": b"(cos\nsystem\n" + text(COMMAND) + b"o.",
    "protocol 0": b"cos\nsystem\n(S'touch pwned'\ntR.",
    "EXT1": b"\x80\x02\x82\x01)R.",
    "BUILD on a module's object": b"\x80\x02cos\nenviron\n}" + text("PATH") + text("") + b"sb.",
    "SETITEM on os.environ": b"\x80\x02cos\nenviron\n" + text("PATH") + text("x") + b"s.",
    "APPEND to sys.path": b"\x80\x02csys\npath\n" + text("/tmp") + b"a.",
    "a name computed by a call": b"\x80\x04" + text("os") + b"ccollections\nOrderedDict\n)R\x93)R.",
    "lists doubled 60 times, then a key": b"\x80\x04}" + doubled_lists(60)[2:] + b"Ns.",
    "tuples doubled 60 times, then a key": b"\x80\x04}" + doubled_tuples(60)[2:] + b"Ns.",
    "a key that is a dict": b"\x80\x02}}Ns.",
    "a set of doubled tuples": b"\x80\x04\x8f(" + doubled_tuples(60)[2:] + b"\x90.",
    "set() of doubled tuples": b"\x80\x04c__builtin__\nset\n(" + doubled_tuples(60)[2:] + b"t\x85R.",
    "5,000,000 nested tuples": b"\x80\x02)" + b"\x85" * 5_000_000 + b".",
    "100,000 marks": b"\x80\x02" + b"(" * 100_000 + b".",
    "6,000,000 opcodes": b"\x80\x02" + b"N0" * 3_000_000 + b"N.",
    "encode() of one text again and again": b"\x80\x02(c_codecs\nencode\nq\x00"
    + text("a" * 1_000_000) + text("latin1") + b"\x86q\x01R" + b"h\x00h\x01R" * 100_000 + b"l.",
    "OrderedDict of one list again and again": b"\x80\x02ccollections\nOrderedDict\nq\x00]("
    + (text("k") + b"N\x86") * 10_000 + b"e\x85q\x01R" + b"0h\x00h\x01R" * 10_000 + b".",
    "thousands of tuple keys": b"\x80\x02}("
    + b"".join(b"J" + struct.pack("<i", n) + b"\x85N" for n in range(10_000)) + b"u.",
    "a huge integer as key": b"\x80\x02}\x8a\x09" + b"\xff" * 8 + b"\x00Ns.",
    "a name of 1 MB": b"\x80\x02c" + b"a" * 1_000_000 + b"\nb\n)R.",
    "a memo entry that was never made": b"\x80\x02h\x07.",
    "an empty stack": b"\x80\x02.",
    "protocol 77": b"\x80\x4dN.",
    "no bytes": b"",
}  # fmt: skip
