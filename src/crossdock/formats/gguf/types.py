"""The numbers GGUF uses for tensor encodings and for metadata values. Data only.

From llama.cpp ggml/include/ggml.h (enum ggml_type), gguf.h (enum gguf_type) and ggml/src/ggml-common.h
(block sizes), b11549. Encodings without a codec can still be listed and copied.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True, slots=True)
class GgmlType:
    """An encoding of tensors: its number, the codec's name, elements per block and bytes per block."""

    number: int
    codec: str
    block: int
    block_bytes: int


_TYPES = (
    GgmlType(0, "float32", 1, 4),
    GgmlType(1, "float16", 1, 2),
    GgmlType(2, "q4_0", 32, 18),
    GgmlType(3, "q4_1", 32, 20),
    GgmlType(6, "q5_0", 32, 22),
    GgmlType(7, "q5_1", 32, 24),
    GgmlType(8, "q8_0", 32, 34),
    GgmlType(9, "q8_1", 32, 36),
    GgmlType(10, "q2_k", 256, 84),
    GgmlType(11, "q3_k", 256, 110),
    GgmlType(12, "q4_k", 256, 144),
    GgmlType(13, "q5_k", 256, 176),
    GgmlType(14, "q6_k", 256, 210),
    GgmlType(15, "q8_k", 256, 292),
    GgmlType(16, "iq2_xxs", 256, 66),
    GgmlType(17, "iq2_xs", 256, 74),
    GgmlType(18, "iq3_xxs", 256, 98),
    GgmlType(19, "iq1_s", 256, 50),
    GgmlType(20, "iq4_nl", 32, 18),
    GgmlType(21, "iq3_s", 256, 110),
    GgmlType(22, "iq2_s", 256, 82),
    GgmlType(23, "iq4_xs", 256, 136),
    GgmlType(24, "int8", 1, 1),
    GgmlType(25, "int16", 1, 2),
    GgmlType(26, "int32", 1, 4),
    GgmlType(27, "int64", 1, 8),
    GgmlType(28, "float64", 1, 8),
    GgmlType(29, "iq1_m", 256, 56),
    GgmlType(30, "bfloat16", 1, 2),
    GgmlType(34, "tq1_0", 256, 54),
    GgmlType(35, "tq2_0", 256, 66),
    GgmlType(39, "mxfp4", 32, 17),
    GgmlType(40, "nvfp4", 64, 36),
    GgmlType(41, "q1_0", 128, 18),
)

TYPES_BY_NUMBER: Mapping[int, GgmlType] = MappingProxyType({kind.number: kind for kind in _TYPES})
TYPES_BY_CODEC: Mapping[str, GgmlType] = MappingProxyType({kind.codec: kind for kind in _TYPES})

# metadata values: number -> (name, struct format character; "" for what is not a number)
VALUES: Mapping[int, tuple[str, str]] = MappingProxyType(
    {
        0: ("UINT8", "B"),
        1: ("INT8", "b"),
        2: ("UINT16", "H"),
        3: ("INT16", "h"),
        4: ("UINT32", "I"),
        5: ("INT32", "i"),
        6: ("FLOAT32", "f"),
        7: ("BOOL", "B"),
        8: ("STRING", ""),
        9: ("ARRAY", ""),
        10: ("UINT64", "Q"),
        11: ("INT64", "q"),
        12: ("FLOAT64", "d"),
    }
)
VALUE_NUMBERS: Mapping[str, int] = MappingProxyType({name: number for number, (name, _) in VALUES.items()})
