"""Per-rank checkpoints whose cuts go through what belongs together: KV heads, and fused down projections.

With fewer KV heads than tensor ranks each rank saves an equal share of linear_qkv's rows, wherever that cuts
(megatron-core 0.16.1, where in `transformer/attention.py` `num_query_groups < world_size`; run and read back). With
mla_down_proj_fusion each has an equal share of the rows of two matrices, one behind the other (Megatron-LM d98e8a6,
`multi_latent_attention.py`, read). They are shown as one tensor of the first of these ranks, with the others' files as
further extents. Reads no bytes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from crossdock.formats.stored import StoredTensor

_QKV = re.compile(r"self_attention\.linear_qkv\.(weight|bias)\Z")
_DOWN = re.compile(r"self_attention\.linear_qkv_down_proj\.weight\Z")
_PART = re.compile(r"tp0(\.pp\d+\.vpp\d+)\Z")


def joined(
    tensors: Mapping[tuple[str, str], StoredTensor], ranks: int, args: Mapping[str, Any]
) -> dict[tuple[str, str], StoredTensor]:
    """`tensors` by (part, name), what several of `ranks` share in one piece."""
    out = dict(tensors)
    for (part, name), first in tensors.items():
        place = _PART.match(part)
        fused = bool(_DOWN.search(name))
        if not place or not first.shape or not (fused or _QKV.search(name)):
            continue
        shares = [tensors.get((f"tp{rank}{place[1]}", name)) for rank in range(ranks)]
        heads = int(_is_cut(first.shape[0] * ranks, args)) if fused else _kv_heads(first.shape[0] * ranks, args)
        if heads >= ranks or heads < 1 or ranks % heads or any(s is None or s.shape != first.shape for s in shares):
            continue
        ways = ranks // heads
        for rank, share in enumerate(shares):
            assert share is not None
            del out[share.part, name]
            home, rows = rank - rank % ways, rank % ways * first.shape[0]
            extents = tuple(replace(e, origin=(e.origin[0] + rows, *e.origin[1:])) for e in share.extents)
            key = f"tp{home}{place[1]}", name
            before = out[key].extents if rank != home else ()
            shape = (ways * first.shape[0], *first.shape[1:])
            out[key] = StoredTensor(name, shape, first.dtype, (*before, *extents), key[0])
    return out


def _is_cut(rows: int, args: Mapping[str, Any]) -> bool:
    """Whether `rows` in all ranks are those of the two down projections once: TELinear keeps a whole copy in each."""
    return rows == sum(args.get(key) or 0 for key in ("q_lora_rank", "kv_lora_rank", "qk_pos_emb_head_dim"))


def _kv_heads(rows: int, args: Mapping[str, Any]) -> int:
    """How many KV heads a linear_qkv of `rows` rows has; 0 where args do not fit it."""
    heads, hidden, width = (args.get(key) for key in ("num_attention_heads", "hidden_size", "kv_channels"))
    if not isinstance(heads, int) or not isinstance(hidden, int) or heads < 1:
        return 0
    width = width if isinstance(width, int) else hidden // heads
    if width < 1 or rows % width or (rows // width - heads) % 2:
        return 0
    return (rows // width - heads) // 2
