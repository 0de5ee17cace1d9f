"""From queries, keys and values to what each head sees, with those of earlier calls from the cache.

GroupQueryAttention (com.microsoft) knows the causal mask, a window, a cap, sinks and a bias; its sequences of a batch
begin at index 0 and are padded behind. Attention (opset 23) is handed the whole mask, so that padding may be anywhere;
where it lacks something (sinks) the scores are written out.
Facts: contrib_ops/cpu/bert/group_query_attention.cc of ONNX Runtime 1.32, operators of ONNX 1.23.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from onnx import helper

from crossdock.formats.onnx.graph import CONTRIB, TYPES, Value
from crossdock.formats.onnx.layers.layer import Layer
from crossdock.formats.onnx.layers.positions import total
from crossdock.model.layers.attention import alibi_slopes

MASKED = {"float32": float(np.finfo(np.float32).min), "float16": float(np.finfo(np.float16).min)}


class Heads(NamedTuple):
    """Query heads, and heads of keys and values."""

    query: int
    key: int


class Cache(NamedTuple):
    """Keys and values of earlier calls, [batch, key heads, past, head_dim], and the names of those with this one's."""

    key: Value
    value: Value
    present: tuple[str, str]


class Kept(NamedTuple):
    """Keys and values with those of this call, [batch, key heads, total or more, width]; layers of the same type behind
    may take them.

    narrow  width of the values without the zeros behind them
    """

    keys: Value
    values: Value
    groups: int
    narrow: int


def attend(layer: Layer, q: Value, k: Value, v: Value, heads: Heads, scale: float) -> Value:
    """q [tokens, heads * d], k [tokens, groups * d], v [tokens, groups * e] -> [tokens, heads * e]."""
    wide, narrow = k.width // heads.key, v.width // heads.key
    if layer.ops == "gqa":  # one width for keys and values, a multiple of 8: zeros behind them change no score
        width = -(-max(wide, narrow) // 8) * 8
        q, k, v = (
            _padded(layer, one, count, width) for one, count in ((q, heads.query), (k, heads.key), (v, heads.key))
        )
        cache = _cache(layer, heads.key, width, width)
        _keep(layer, cache, heads.key, narrow)
        return _narrowed(layer, _group_query(layer, q, k, v, heads, scale, cache), heads.query, width, narrow)
    cache = _cache(layer, heads.key, wide, narrow)
    kept = _keep(layer, cache, heads.key, narrow)
    if not _sinks(layer):
        return layer.graph.reshape(_standard(layer, q, k, v, heads, scale, cache), -1, heads.query * narrow)
    for past, new, name in zip(cache[:2], (k, v), cache.present, strict=True):
        new = layer.graph.transpose(_four(layer, new, heads.key), 0, 2, 1, 3)
        layer.graph.ops("Concat", past, new, outputs=[name], axis=2)
    return _written_out(layer, q, kept, heads.query, scale)


def attend_kept(layer: Layer, q: Value, dim: int, scale: float) -> Value:
    """As `attend`, of q with heads of `dim` values, to what the last layer of the same type before this one keeps."""
    kept: Kept = layer.shared[_kind(layer)]
    heads = q.width // dim
    width = kept.keys.width
    if layer.ops == "gqa":  # a cache that stays in place is longer than the text
        keys, values = (
            layer.graph.op("Slice", value, layer.graph.ints(0), total(layer), layer.graph.ints(2))
            for value in (kept.keys, kept.values)
        )
        kept = kept._replace(keys=keys, values=values)
    y = _written_out(layer, _padded(layer, q, heads, width), kept, heads, scale)
    return _narrowed(layer, y, heads, kept.values.width, kept.narrow)


def _kind(layer: Layer) -> str:
    return f"keys and values of {layer.config.layer_type(layer.index)}"


def _keep(layer: Layer, cache: Cache, groups: int, narrow: int) -> Kept:
    """What the graph gives as this layer's cache."""
    keys, values = (value._replace(name=name) for value, name in zip(cache[:2], cache.present, strict=True))
    kept = Kept(keys, values, groups, narrow)
    layer.shared[_kind(layer)] = kept
    return kept


def _narrowed(layer: Layer, y: Value, heads: int, width: int, narrow: int) -> Value:
    """[tokens, heads * narrow] without the zeros behind the values of each head."""
    graph = layer.graph
    if width != narrow:
        y = graph.slice(graph.reshape(y, -1, heads, width), -1, 0, narrow)
    return graph.reshape(y, -1, heads * narrow)


def _padded(layer: Layer, x: Value, heads: int, width: int) -> Value:
    """Heads x [tokens, heads * own width] with zeros up to `width` behind each."""
    graph, own = layer.graph, x.width // heads
    if own == width:
        return x
    x = graph.op("Pad", graph.reshape(x, -1, heads, own), graph.ints(0, 0, 0, 0, 0, width - own))
    return graph.reshape(x, -1, heads * width)


def _cache(layer: Layer, groups: int, key_dim: int, value_dim: int) -> Cache:
    """The next cache of the graph: its inputs and outputs."""
    graph, number = layer.graph, layer.shared.setdefault("caches", [])
    name = len(number)
    number.append((groups, key_dim, value_dim))
    past = []
    for kind, dim in (("key", key_dim), ("value", value_dim)):
        for where, tensors, length in (("past_key_values", graph.inputs, "past"), ("present", graph.outputs, "total")):
            shape = ("batch", groups, length, dim)
            tensors.append(helper.make_tensor_value_info(f"{where}.{name}.{kind}", TYPES[graph.dtype], shape))
        past.append(Value(f"past_key_values.{name}.{kind}", graph.dtype, dim))
    return Cache(past[0], past[1], (f"present.{name}.key", f"present.{name}.value"))


def _group_query(layer: Layer, q: Value, k: Value, v: Value, heads: Heads, scale: float, cache: Cache) -> Value:
    config, graph = layer.config, layer.graph
    window = config.sliding_window if config.layer_type(layer.index) == "sliding_attention" else None
    sinks = graph.cast(layer.vector("attn_sinks"), graph.dtype) if _sinks(layer) else None
    bias = _bias(layer, heads.query)
    lengths, longest = _lengths(layer)
    inputs = [layer.sequences(q), layer.sequences(k), layer.sequences(v), cache.key, cache.value, lengths, longest]
    return graph.ops(
        "GroupQueryAttention", *inputs, None, None, None, bias, sinks, outputs=(_own(layer), *cache.present),
        domain=CONTRIB, num_heads=heads.query, kv_num_heads=heads.key, scale=scale,
        softcap=config.attn_logit_softcapping or 0.0, local_window_size=-1 if window is None else window,
    )[0]  # fmt: skip


def _standard(layer: Layer, q: Value, k: Value, v: Value, heads: Heads, scale: float, cache: Cache) -> Value:
    graph = layer.graph
    return graph.ops(
        "Attention", layer.sequences(q), layer.sequences(k), layer.sequences(v), _mask(layer, heads.query), cache.key,
        cache.value, outputs=(_own(layer), *cache.present), q_num_heads=heads.query, kv_num_heads=heads.key,
        scale=scale, softcap=layer.config.attn_logit_softcapping or 0.0,
    )[0]  # fmt: skip


def _written_out(layer: Layer, q: Value, kept: Kept, heads: int, scale: float) -> Value:
    """Scores one operator at a time, with a sink behind the keys that has no value where the layer has sinks."""
    graph, groups = layer.graph, kept.groups
    each = heads // groups
    rows = graph.transpose(_four(layer, q, heads), 0, 2, 1, 3)
    rows = graph.op("Reshape", rows, graph.ints(0, groups, each, -1, q.width // heads))
    keys = graph.transpose(graph.op("Unsqueeze", kept.keys, graph.ints(2)), 0, 1, 2, 4, 3)
    scores = graph.mul(graph.cast(graph.op("MatMul", rows, keys), "float32"), scale)
    scores = graph.capped(scores, layer.config.attn_logit_softcapping)
    mask = graph.op("Unsqueeze", _mask(layer, heads), graph.ints(1))
    scores = graph.op("Where", mask, scores, graph.constant(MASKED["float32"], "float32"), dtype="float32")
    if _sinks(layer):
        sinks = graph.reshape(layer.vector("attn_sinks"), 1, groups, each, 1, 1)
        shape = graph.concat(0, graph.dims(scores, 0, 4), graph.ints(1))
        scores = graph.op("Concat", scores, graph.op("Expand", sinks, shape), axis=-1)
    share = graph.op("Softmax", scores, axis=-1)
    if _sinks(layer):
        share = graph.op("Slice", share, graph.ints(0), graph.ints(-1), graph.ints(-1))
    y = graph.op("MatMul", graph.cast(share, graph.dtype), graph.op("Unsqueeze", kept.values, graph.ints(2)))
    return graph.reshape(graph.transpose(y, 0, 3, 1, 2, 4), -1, heads * kept.values.width)


def _four(layer: Layer, x: Value, heads: int) -> Value:
    graph = layer.graph
    return graph.op("Reshape", layer.sequences(x), graph.ints(0, 0, heads, -1))


def _sinks(layer: Layer) -> bool:
    return layer.index in layer.config.attn_sink_layers


def _own(layer: Layer) -> str:
    return layer.graph.name("attended")


def _lengths(layer: Layer) -> tuple[Value, Value]:
    """int32: the index of the last token of every sequence [batch], and how many positions there are."""
    graph = layer.graph
    if "lengths" not in layer.shared:
        count = graph.op("ReduceSum", layer.inputs.attention_mask, graph.ints(1), keepdims=0)
        last = graph.cast(graph.op("Sub", count, graph.constant(1, "int64")), "int32")
        layer.shared["lengths"] = last, graph.cast(graph.op("Squeeze", total(layer), graph.ints(0)), "int32")
    found: tuple[Value, Value] = layer.shared["lengths"]
    return found


def _places(layer: Layer) -> tuple[Value, Value]:
    """Positions of queries, int64 [batch, 1, sequence, 1], and of keys, [batch, 1, 1, total], padding not counted."""
    graph = layer.graph
    if "places" not in layer.shared:
        queries = graph.op("Unsqueeze", layer.inputs.position_ids, graph.ints(1, 3))
        zero, one = graph.constant(0, "int64"), graph.constant(1, "int64")
        if layer.ops == "gqa":  # every sequence of the cache begins at index 0
            keys = graph.op("Range", zero, graph.op("Squeeze", total(layer), graph.ints(0)), one)
            keys = graph.op("Unsqueeze", keys, graph.ints(0))
        else:
            keys = graph.op("Sub", graph.op("CumSum", layer.inputs.attention_mask, one), one)
        layer.shared["places"] = queries, graph.op("Unsqueeze", keys, graph.ints(1, 2))
    found: tuple[Value, Value] = layer.shared["places"]
    return found


def _mask(layer: Layer, heads: int) -> Value:
    """What queries may see: bool [batch, 1, sequence, total], or with ALiBi what is added to scores."""
    config, graph, kind = layer.config, layer.graph, layer.config.layer_type(layer.index)
    key = "mask", kind, config.position_embedding
    if key not in layer.shared:
        queries, keys = _places(layer)
        seen = graph.op("GreaterOrEqual", queries, keys, dtype="bool")
        if layer.ops != "gqa":  # padding may be anywhere
            real = graph.op("Unsqueeze", graph.cast(layer.inputs.attention_mask, "bool"), graph.ints(1, 2))
            seen = graph.op("And", real, seen)
        if kind == "sliding_attention" and config.sliding_window is not None:
            near = graph.op("Less", graph.op("Sub", queries, keys), graph.constant(config.sliding_window, "int64"))
            seen = graph.op("And", seen, near)
        chunk = _same_chunk(layer)
        seen = seen if chunk is None else graph.op("And", seen, chunk)
        if config.position_embedding == "alibi":
            hidden = graph.constant(MASKED[graph.dtype], graph.dtype)
            seen = graph.op("Where", seen, _alibi(layer, heads), hidden, dtype=graph.dtype)
        layer.shared[key] = seen
    found: Value = layer.shared[key]
    return found


def _bias(layer: Layer, heads: int) -> Value | None:
    """What GroupQueryAttention adds to scores, [batch or 1, heads or 1, sequence, total]; None: nothing."""
    config, graph = layer.config, layer.graph
    kind = config.layer_type(layer.index)
    chunked = kind == "chunked_attention" and config.attention_chunk_size is not None
    if not chunked and config.position_embedding != "alibi":
        return None
    if (key := ("bias", kind)) not in layer.shared:
        if chunked:
            shown = _same_chunk(layer)
            nothing, hidden = (graph.constant(value, graph.dtype) for value in (0.0, MASKED[graph.dtype]))
            layer.shared[key] = graph.op("Where", shown, nothing, hidden, dtype=graph.dtype)
        else:
            sequence = graph.dims(layer.inputs.input_ids, 1, 2)
            shape = graph.concat(0, graph.ints(1, heads), sequence, total(layer))
            layer.shared[key] = graph.op("Expand", _alibi(layer, heads), shape)
    found: Value = layer.shared[key]
    return found


def _same_chunk(layer: Layer) -> Value | None:
    """bool [batch, 1, sequence, total]: whether a key lies in its query's chunk; None where layers have no chunks."""
    config, graph = layer.config, layer.graph
    if layer.config.layer_type(layer.index) != "chunked_attention" or config.attention_chunk_size is None:
        return None
    size = graph.constant(config.attention_chunk_size, "int64")
    return graph.op("Equal", *(graph.op("Div", one, size) for one in _places(layer)), dtype="bool")


def _alibi(layer: Layer, heads: int) -> Value:
    """A slope of each head times the key's position, [batch, heads, 1, total]."""
    graph = layer.graph
    slopes = graph.constant(alibi_slopes(heads).reshape(1, heads, 1, 1), "float32")
    return graph.cast(graph.mul(graph.cast(_places(layer)[1], "float32"), slopes), graph.dtype)
