"""Writes a Hugging Face folder of TinyLlama-1.1B's shape with random bfloat16 weights and a 32,000-piece
tokenizer.

    python benchmarks/make_hf.py OUT [--layers 22] [--shards 5]

Needs numpy only: the safetensors headers and the SentencePiece model are written here. 22 layers are 1.1 B
parameters, 2.2 GB.
"""

from __future__ import annotations

import argparse
import json
import math
import struct
from pathlib import Path

import numpy as np
from make_torch_dist import random_bfloat16

HIDDEN, FFN, HEADS, KV_HEADS, VOCAB = 2048, 5632, 32, 4, 32000
CONTROL, UNKNOWN, NORMAL, BYTE = 3, 2, 1, 6  # piece types of sentencepiece_model.proto


def tensor_shapes(layers: int) -> dict[str, tuple[int, ...]]:
    """Every weight of the model, in reading order."""
    kv = HIDDEN // HEADS * KV_HEADS
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCAB, HIDDEN)}
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        shapes |= {
            prefix + "input_layernorm.weight": (HIDDEN,),
            prefix + "self_attn.q_proj.weight": (HIDDEN, HIDDEN),
            prefix + "self_attn.k_proj.weight": (kv, HIDDEN),
            prefix + "self_attn.v_proj.weight": (kv, HIDDEN),
            prefix + "self_attn.o_proj.weight": (HIDDEN, HIDDEN),
            prefix + "post_attention_layernorm.weight": (HIDDEN,),
            prefix + "mlp.gate_proj.weight": (FFN, HIDDEN),
            prefix + "mlp.up_proj.weight": (FFN, HIDDEN),
            prefix + "mlp.down_proj.weight": (HIDDEN, FFN),
        }
    return shapes | {"model.norm.weight": (HIDDEN,), "lm_head.weight": (VOCAB, HIDDEN)}


def write_shards(out: Path, shapes: dict[str, tuple[int, ...]], shards: int) -> None:
    """The safetensors files, cut at about equal sizes, and their index."""
    rng = np.random.default_rng(7)
    total = sum(2 * math.prod(shape) for shape in shapes.values())
    groups: list[list[str]] = [[] for _ in range(shards)]
    done = 0
    for name, shape in shapes.items():
        groups[min(done * shards // total, shards - 1)].append(name)
        done += 2 * math.prod(shape)
    weight_map = {}
    for number, names in enumerate(groups, 1):
        file_name = f"model-{number:05d}-of-{shards:05d}.safetensors"
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        end = 0
        for name in names:
            size = 2 * math.prod(shapes[name])
            header[name] = {"dtype": "BF16", "shape": shapes[name], "data_offsets": [end, end + size]}
            end += size
            weight_map[name] = file_name
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with (out / file_name).open("wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            for name in names:
                file.write(random_bfloat16(rng, math.prod(shapes[name]), norm="norm" in name).tobytes())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (out / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))


def varint(number: int) -> bytes:
    """A protobuf varint."""
    out = bytearray()
    while number >= 128:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


def field(number: int, value: bytes | int | float) -> bytes:
    """One protobuf field: bytes are length-delimited, ints varints, floats 32-bit."""
    if isinstance(value, bytes):
        return varint(number << 3 | 2) + varint(len(value)) + value
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    return varint(number << 3) + varint(value)


def sentencepiece_model() -> bytes:
    """A BPE ModelProto of 32,000 pieces: three special ones, 256 bytes, the printable characters, then words
    of them."""
    pieces = [("<unk>", 0.0, UNKNOWN), ("<s>", 0.0, CONTROL), ("</s>", 0.0, CONTROL)]
    pieces += [(f"<0x{byte:02X}>", 0.0, BYTE) for byte in range(256)]
    letters = "▁" + "".join(map(chr, range(33, 127)))
    words = [a + b for a in letters for b in letters] + ["▁" + a + b for a in letters[1:] for b in letters[1:]]
    words += [a + b + c for a in letters[60:90] for b in letters[60:90] for c in letters[60:90]]
    unique = list(dict.fromkeys(words))[: VOCAB - len(pieces) - len(letters)]
    pieces += [(word, -float(rank), NORMAL) for rank, word in enumerate([*unique, *letters])]
    if len(pieces) != VOCAB:
        raise ValueError(f"{len(pieces)} pieces, {VOCAB} wanted")
    out = b"".join(field(1, field(1, text.encode()) + field(2, score) + field(3, kind)) for text, score, kind in pieces)
    trainer = field(3, 2) + field(4, VOCAB) + field(35, 1)  # BPE, vocab_size, byte_fallback
    normalizer = field(1, b"identity") + field(3, 1) + field(4, 0) + field(5, 1)
    return out + field(2, trainer) + field(3, normalizer)


def main() -> None:
    """Write config, tokenizer and weights."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--layers", type=int, default=22)
    parser.add_argument("--shards", type=int, default=5)
    given = parser.parse_args()
    out: Path = given.out
    out.mkdir(parents=True)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_act": "silu",
        "hidden_size": HIDDEN,
        "intermediate_size": FFN,
        "max_position_embeddings": 2048,
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": HEADS,
        "num_hidden_layers": given.layers,
        "num_key_value_heads": KV_HEADS,
        "rms_norm_eps": 1e-05,
        "rope_scaling": None,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.46.0",
        "vocab_size": VOCAB,
    }
    (out / "config.json").write_text(json.dumps(config, indent=2))
    tokenizer = {
        "tokenizer_class": "LlamaTokenizer",
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "chat_template": "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}",
    }
    (out / "tokenizer_config.json").write_text(json.dumps(tokenizer, indent=2))
    (out / "tokenizer.model").write_bytes(sentencepiece_model())
    shapes = tensor_shapes(given.layers)
    write_shards(out, shapes, given.shards)
    print(f"{out}: {sum(math.prod(shape) for shape in shapes.values()):,} parameters in {given.shards} shards")


if __name__ == "__main__":
    main()
