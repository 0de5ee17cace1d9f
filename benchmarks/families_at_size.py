"""Plans of every family at its largest published size: CPU seconds and peak memory, over sparse files.

    python benchmarks/families_at_size.py --work FOLDER [FAMILY ...] [--json figures.json]

Sizes are the defaults of transformers' configuration classes, with LARGEST over them where a larger model is published.
transformers makes the model without memory (torch's "meta" device); its names and shapes stand in the header of a
sparse safetensors file, and a first plan makes a folder with the published names of it, sparse too. From that one, a
plan to Hugging Face and one to GGUF are made, each in a process of its own. The exit code is 1 when a plan takes more
than 12 CPU seconds or 500 MB. Needs torch and transformers.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MOST_SECONDS, MOST_BYTES = 12.0, 500 << 20
# numbers of the largest published model where the class has a smaller one's: layers, widths, heads, experts
LARGEST: Mapping[str, Mapping[str, Any]] = {
    "llama": {"num_hidden_layers": 126, "hidden_size": 16384, "intermediate_size": 53248, "num_attention_heads": 128,
              "num_key_value_heads": 8, "vocab_size": 128256},
    "mixtral": {"num_hidden_layers": 56, "hidden_size": 6144, "intermediate_size": 16384, "num_attention_heads": 48},
    "qwen2": {"num_hidden_layers": 80, "hidden_size": 8192, "intermediate_size": 29568, "num_attention_heads": 64,
              "num_key_value_heads": 8, "vocab_size": 152064},
    "qwen3_moe": {"num_hidden_layers": 94, "hidden_size": 4096, "num_attention_heads": 64, "head_dim": 128,
                  "moe_intermediate_size": 1536, "num_experts": 128},
    "deepseek_v3": {"num_hidden_layers": 61, "hidden_size": 7168, "n_routed_experts": 384, "n_group": 1,
                    "topk_group": 1, "num_attention_heads": 64, "vocab_size": 163840},
    "qwen3_5_moe_text": {"num_hidden_layers": 60, "hidden_size": 4096, "num_experts": 512, "num_attention_heads": 32,
                         "moe_intermediate_size": 1024, "shared_expert_intermediate_size": 1024},
    "glm4_moe": {"num_hidden_layers": 92, "hidden_size": 5120, "n_routed_experts": 160, "num_attention_heads": 96},
    "llama4_text": {"num_hidden_layers": 48, "num_local_experts": 128, "interleave_moe_layer_step": 2},
    "ernie4_5_moe": {"num_hidden_layers": 54, "hidden_size": 8192, "moe_num_experts": 64, "num_attention_heads": 64,
                     "num_key_value_heads": 8},
    "gpt_oss": {"num_hidden_layers": 36, "num_local_experts": 128},
    "falcon": {"num_hidden_layers": 80, "hidden_size": 14848, "num_attention_heads": 232, "num_kv_heads": 8,
               "new_decoder_architecture": True},
    "bloom": {"n_layer": 70, "hidden_size": 14336, "n_head": 112},
    "jamba": {"num_hidden_layers": 72, "hidden_size": 8192, "intermediate_size": 24576, "num_attention_heads": 64},
}  # fmt: skip


def write_sparse(folder: Path, config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """A Hugging Face folder of bfloat16 tensors without data."""
    folder.mkdir(parents=True)
    header, at = {}, 0
    for name, shape in shapes.items():
        size = 2
        for length in shape:
            size *= length
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + at)
    (folder / "config.json").write_text(json.dumps(dict(config)))


def in_memory(kind: str, out: Path) -> int:
    """The model as transformers has it in memory; how many parameters."""
    import torch
    import transformers

    numbers = LARGEST.get(kind, {})
    config = transformers.AutoConfig.for_model(kind, **numbers)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    state = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items() if tensor.is_floating_point()}
    if config.tie_word_embeddings:
        state.pop("lm_head.weight", None)
    write_sparse(out, {**config.to_dict(), "dtype": "bfloat16"}, state)
    return sum(tensor.numel() for tensor in model.state_dict().values())


def published(source: Path, out: Path) -> int:
    """The same model under its published names, sparse; how many tensors."""
    import crossdock.delivery as delivery

    plan = delivery.plan(delivery.open(source), "hf")
    out.mkdir(parents=True)
    for file in plan.files:
        with (out / file.name).open("wb") as stream:
            stream.write(file.header)
            stream.truncate(file.size)
    return len(plan.tensors)


def measured(source: Path, to: str) -> None:
    """Prints CPU seconds, peak bytes and the number of tensors of one plan, as JSON."""
    import crossdock.delivery as delivery

    plan = delivery.plan(delivery.open(source), to)
    used = resource.getrusage(resource.RUSAGE_SELF)
    print(json.dumps([used.ru_utime + used.ru_stime, used.ru_maxrss << 10, len(plan.tensors)]))


def child(*arguments: str) -> Any:
    """What this script prints in a process of its own. RuntimeError with its last line where it fails."""
    done = subprocess.run(
        [sys.executable, __file__, *arguments], capture_output=True, text=True, timeout=600, env={**os.environ}
    )
    if done.returncode:
        raise RuntimeError((done.stderr.strip() or "failed").splitlines()[-1][:200])
    return json.loads(done.stdout.splitlines()[-1])


def row(kind: str, work: Path) -> dict[str, Any]:
    """The figures of one family, or why there are none."""
    folder = work / kind
    shutil.rmtree(folder, ignore_errors=True)
    try:
        out: dict[str, Any] = {"family": kind, "parameters": child("--step", "model", kind, str(folder / "memory"))}
        out["tensors"] = child("--step", "published", str(folder / "memory"), str(folder / "hf"))
        for to in ("hf", "gguf"):
            try:
                out[to] = child("--step", "plan", str(folder / "hf"), to)
            except RuntimeError as error:
                out[to] = str(error)
    except RuntimeError as error:
        return {"family": kind, "why": str(error)}
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--step")
    parser.add_argument("names", nargs="*")
    options = parser.parse_args()
    if options.step == "model":
        print(in_memory(options.names[0], Path(options.names[1])))
    elif options.step == "published":
        print(published(Path(options.names[0]), Path(options.names[1])))
    elif options.step == "plan":
        measured(Path(options.names[0]), options.names[1])
    if options.step:
        return
    from crossdock.model.families import families

    missed, rows = 0, []
    for kind in options.names or families():
        figures = row(kind, options.work)
        rows.append(figures)
        if "why" in figures:
            print(f"{kind:22} -  {figures['why']}", flush=True)
            continue
        text = f"{kind:22} {figures['parameters'] / 1e9:7.1f} B {figures['tensors']:7,}"
        for to in ("hf", "gguf"):
            if isinstance(figures[to], str):
                text += f"  {to}: {figures[to]}"
                continue
            seconds, peak, _ = figures[to]
            too_much = seconds > MOST_SECONDS or peak > MOST_BYTES
            missed += too_much
            text += f"  {to}: {seconds:5.1f} s {peak >> 20:4} MB{' !' if too_much else ''}"
        print(text, flush=True)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))
    sys.exit(missed > 0)


if __name__ == "__main__":
    main()
