"""What can be asked of an ONNX folder."""

from __future__ import annotations

from dataclasses import dataclass

from crossdock.errors import UsageError
from crossdock.formats.hf.options import FolderOptions
from crossdock.options import option

OPS = ("gqa", "standard")


def _ops(text: str) -> str:
    if text in OPS:
        return text
    raise UsageError(f"unknown set of operators {text!r}, expected {' or '.join(OPS)}")


@dataclass(frozen=True, kw_only=True)
class OnnxOptions(FolderOptions):
    """What can be asked of the graph.

    ops  "gqa" (GroupQueryAttention of ONNX Runtime, whose cache stays in place) or "standard" (ONNX opset 23 alone)
    """

    ops: str = option("gqa", _ops, "Attention: gqa or standard.", "NAME")
