"""llama.cpp's legacy training files from the description of their bytes alone: written at random, and read whole.

Nothing here knows crossdock. `write` can make every variant; `read` gives numpy arrays by the old names.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
RANKED = ("attention_norm", "wq", "wk", "wv", "wo", "ffn_norm", "w1", "w2", "w3", "tok_embeddings", "norm", "output")
LAYER = ("attention_norm", "wq", "wk", "wv", "wo", "ffn_norm", "w1", "w2", "w3")
SPELLED = {"wq": "attention.wq", "wk": "attention.wk", "wv": "attention.wv", "wo": "attention.wo",
           "w1": "feed_forward.w1", "w2": "feed_forward.w2", "w3": "feed_forward.w3"}  # fmt: skip
OLD_ADAM = ("x", "g1", "g2", "m", "v", "mh", "vh", "pf")
LBFGS = ("x", "xp", "g", "gp", "d", "pf", "lmal", "lmys", "lms", "lmy")


@dataclass
class Legacy:
    """A file in parts. sizes: the header's words; tensors and vectors in the file's order, shapes outermost first."""

    kind: str
    sizes: dict[str, int]
    ranks: dict[str, int]
    tensors: dict[str, Floats]
    vectors: dict[str, Floats] = field(default_factory=dict)
    tail: dict[str, Any] = field(default_factory=dict)


def names(sizes: dict[str, int], ranks: dict[str, int]) -> dict[str, tuple[int, ...]]:
    """Every tensor in the file's order with its shape, outermost first."""
    wide, ffn, vocab = sizes["n_embd"], sizes["n_ff"], sizes["n_vocab"]
    into = dict.fromkeys(RANKED, wide) | {"w2": ffn}
    out = dict.fromkeys(RANKED, wide) | {"w1": ffn, "w3": ffn, "tok_embeddings": vocab, "output": vocab}
    found: dict[str, tuple[int, ...]] = {}
    stems = [(stem, stem) for stem in ("tok_embeddings", "norm", "output")]
    stems += [(s, f"layers.{i}.{SPELLED.get(s, s)}") for i in range(sizes["n_layer"]) for s in LAYER]
    for stem, name in stems:
        norm = stem.endswith("norm")
        if ranks:
            found[f"{name}.weight.loraA"] = (into[stem], ranks[stem])
            found[f"{name}.weight.loraB"] = (1 if norm else out[stem], ranks[stem])
        else:
            found[f"{name}.weight"] = (wide,) if norm else (out[stem], into[stem])
    return found


def random_file(
    rng: np.random.Generator, kind: str, version: str, optimizer: str, *, n_mult: bool = True, **given: int
) -> Legacy:
    """A small file of any variant. version: "0", "1", "1a", or "" for none. given: sizes not to draw."""
    heads, head_dim = int(rng.integers(1, 4)), 2 * int(rng.integers(1, 5))
    sizes = {
        "train_its": int(rng.integers(1, 99)), "train_samples": (samples := int(rng.integers(1, 50))),
        "train_tokens": samples * int(rng.integers(1, 64)), "n_vocab": int(rng.integers(5, 40)),
        "n_embd": heads * head_dim, "n_mult": 32, "n_head": heads, "n_layer": int(rng.integers(1, 4)),
        "n_rot": head_dim, "n_ff": int(rng.integers(3, 50)),
    }  # fmt: skip
    sizes |= given
    if not n_mult:
        del sizes["n_mult"]
    ranks = {name: int(rng.integers(1, 6)) for name in RANKED} if kind == "ggcl" else {}
    tensors = {name: rng.standard_normal(s).astype(np.float32) for name, s in names(sizes, ranks).items()}
    made = Legacy(kind, sizes, ranks, tensors)
    if version:
        count = sum(t.size for t in tensors.values())
        past, memory = int(rng.integers(0, 4)), int(rng.integers(1, 4))
        shapes = {"pf": (past,), "lmal": (memory,), "lmys": (memory,), "lms": (memory, count), "lmy": (memory, count)}
        held = LBFGS if optimizer == "lbfgs" else OLD_ADAM if version == "0" else ("m", "v", "pf")
        made.vectors = {n: rng.standard_normal(shapes.get(n, (count,))).astype(np.float32) for n in held}
        numbers = {"past": past, "memory": memory if optimizer == "lbfgs" else 0, "iteration": int(rng.integers(0, 99))}
        made.tail = {
            "version": version, "optimizer": optimizer, "count": count, "fresh": int(rng.integers(0, 2)),
            "best": 3.25, "other": 0.5, "counts": [int(n) for n in rng.integers(0, 9, 4)], **numbers,
        }  # fmt: skip
    return made


def scratch_order(made: Legacy) -> list[str]:
    """The order of the optimizer's vectors in master's default program: that of the file, norm and output last."""
    first, norm, output, *inner = made.tensors
    layers = [inner[at : at + len(LAYER)] for at in range(0, len(inner), len(LAYER))]
    return [first, *(one[at] for one in layers for at in (0, 1, 2, 3, 4, 5, 8, 6, 7)), norm, output]


def in_order(made: Legacy, order: list[str]) -> Legacy:
    """The file with the optimizer's copy of the parameters in `order`, and moments that are functions of them."""
    flat = np.concatenate([made.tensors[name].reshape(-1) for name in order])
    for row, name in enumerate(("x", "m", "v")):
        made.vectors[name] = flat * np.float32(row + 1)
    return made


def write(made: Legacy) -> bytes:
    """The file's bytes."""
    out = bytearray(b"pcgg" if made.kind == "ggcp" else b"lcgg") + bytes(4)
    out += b"".join(struct.pack("<I", n) for name, n in made.sizes.items() if name != "n_ff")
    out += b"".join(struct.pack("<I", made.ranks[name]) for name in RANKED if made.ranks)
    for name, values in made.tensors.items():
        _record(out, name, values)
    if made.tail:
        _optimizer(out, made)
    return bytes(out)


def _record(out: bytearray, name: str, values: Floats | None) -> None:
    ne = [] if values is None else list(reversed(values.shape))
    out += struct.pack(f"<III{len(ne)}I", len(ne), len(name), 0, *ne) + name.encode()
    out += bytes(-len(out) % 32)
    out += b"" if values is None else values.tobytes()


def _optimizer(out: bytearray, made: Legacy) -> None:
    tail = made.tail
    adam = tail["optimizer"] == "adam"
    if tail["version"] == "1":
        out += struct.pack("<Iii", 1, tail["past"], tail["memory"])
    else:
        parameters = bytearray(96)
        struct.pack_into("<iii", parameters, 0, 0 if adam else 1, 4, tail["past"])
        struct.pack_into("<i", parameters, 60, tail["memory"])
        out += struct.pack("<I", 0 if tail["version"] == "0" else 1) + parameters
    out += struct.pack("<qiI", tail["count"], tail["iteration"], tail["fresh"])
    for values in made.vectors.values():
        _record(out, "", values if values.size else None)
    numbers = tail["counts"][: 1 if adam else 4]
    out += struct.pack(f"<ff{len(numbers)}i", tail["best"], tail["other"], *numbers)


def read(raw: bytes, kind: str, *, n_mult: bool = True) -> Legacy:
    """Header and tensors of a file that is known to be good; what follows them is not read."""
    words = ["train_its", "train_samples", "train_tokens", "n_vocab", "n_embd", "n_mult", "n_head", "n_layer", "n_rot"]
    if not n_mult:
        words.remove("n_mult")
    sizes = dict(zip(words, struct.unpack_from(f"<{len(words)}I", raw, 8), strict=True))
    at = 8 + 4 * len(words)
    ranks = dict(zip(RANKED, struct.unpack_from("<12I", raw, at), strict=True)) if kind == "ggcl" else {}
    at += 4 * len(ranks)
    tensors: dict[str, Floats] = {}
    for name in names(sizes | {"n_ff": 0}, ranks):
        dims, length, _ = struct.unpack_from("<III", raw, at)
        shape = struct.unpack_from(f"<{dims}I", raw, at + 12)[::-1]
        at += 12 + 4 * dims + length
        at += -at % 32
        tensors[name] = np.frombuffer(raw, "<f4", int(np.prod(shape)), at).reshape(shape)
        at += tensors[name].nbytes
    return Legacy(kind, sizes, ranks, tensors)


def forward(weights: dict[str, Floats], layers: int, heads: int, tokens: list[int], eps: float = 1e-5) -> Floats:
    """log-probabilities [n, vocabulary] of Llama in float64, rope over neighbours, weights by their old names."""
    w = {name.removesuffix(".weight"): values.astype(np.float64) for name, values in weights.items()}
    x = w["tok_embeddings"][tokens]
    n, wide = x.shape
    half = wide // heads // 2
    angles = np.arange(n)[:, None] * 10000.0 ** (-np.arange(half) / half)
    turn = np.exp(1j * angles)[:, None, :]

    def normed(x: Any, weight: Any) -> Any:
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * weight

    def turned(x: Any) -> Any:
        pairs = x.reshape(n, heads, half, 2)
        out = (pairs[..., 0] + 1j * pairs[..., 1]) * turn
        return np.stack([out.real, out.imag], -1).reshape(n, heads, 2 * half)

    for i in range(layers):
        p = f"layers.{i}."
        h = normed(x, w[p + "attention_norm"])
        q, k = (turned(h @ w[p + f"attention.{name}"].T) for name in ("wq", "wk"))
        v = (h @ w[p + "attention.wv"].T).reshape(n, heads, 2 * half)
        scores = np.einsum("ihd,jhd->hij", q, k) / np.sqrt(2 * half) + np.triu(np.full((n, n), -np.inf), 1)
        attention = np.exp(scores - scores.max(-1, keepdims=True))
        attention /= attention.sum(-1, keepdims=True)
        x = x + np.einsum("hij,jhd->ihd", attention, v).reshape(n, wide) @ w[p + "attention.wo"].T
        h = normed(x, w[p + "ffn_norm"])
        gate = h @ w[p + "feed_forward.w1"].T
        x = x + (gate / (1 + np.exp(-gate)) * (h @ w[p + "feed_forward.w3"].T)) @ w[p + "feed_forward.w2"].T
    return log_softmax(normed(x, w["norm"]) @ w["output"].T)


def log_softmax(logits: Any) -> Any:
    logits = np.asarray(logits, np.float64)
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
