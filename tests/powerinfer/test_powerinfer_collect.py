"""Counted activations against a direct count in transformers, on tiny models of each family."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import tokenizers
from crossdock.errors import ConfigError, CrossdockError, PlanError, UsageError
from crossdock_powerinfer import collect as module
from crossdock_powerinfer.collect import collect
from crossdock_powerinfer.split import split
from crossdock_powerinfer.statistics import read_statistics

WORDS = [f"w{number}" for number in range(60)]
TEXT = " ".join(WORDS[number % 60] for number in np.random.default_rng(0).integers(0, 60, 200))
SMALL = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
CONFIGS = {
    "opt": lambda: transformers.OPTConfig(
        **SMALL, ffn_dim=64, word_embed_proj_dim=32, max_position_embeddings=64, activation_function="relu"
    ),
    "falcon": lambda: transformers.FalconConfig(**SMALL, ffn_hidden_size=64, activation="relu"),
    "llama": lambda: transformers.LlamaConfig(
        **SMALL, intermediate_size=64, num_key_value_heads=2, hidden_act="relu", max_position_embeddings=64
    ),
}
CONFIGS["mistral"] = lambda: transformers.MistralConfig(
    **SMALL, intermediate_size=64, num_key_value_heads=2, hidden_act="relu", max_position_embeddings=64
)
MAPS = {"opt": "fc1", "falcon": "mlp.dense_h_to_4h", "llama": "mlp.gate_proj", "mistral": "mlp.gate_proj"}


class Calls:
    """Makes a folder when it is unpickled by Python."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (self.path,)


def tiny(folder: Path, kind: str) -> Any:
    """A model with random weights and a tokenizer of words, saved."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(CONFIGS[kind]()).float().eval()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    words = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: number for number, word in enumerate(["<unk>", *WORDS])}, "<unk>")
    )
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>").save_pretrained(folder)
    return model


def changed(folder: Path, **keys: object) -> None:
    """Other keys in a folder's config.json."""
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **keys}))


def directly(model: Any, names: list[str], drelu: bool, above: float = 0.0) -> list[list[int]]:
    """The whole model over the same windows of 32, with hooks of the test's own."""
    ids = torch.tensor([1 + WORDS.index(word) for word in TEXT.split()])[: 200 // 32 * 32].reshape(-1, 32)
    modules = dict(model.named_modules())
    layers = sorted({name.removesuffix("." + names[0]) for name in modules if name.endswith("." + names[0])})
    seen: dict[tuple[str, str], list[torch.Tensor]] = {(layer, name): [] for layer in layers for name in names}

    def hook(key: tuple[str, str]) -> Any:
        def keep(module: Any, args: Any, output: torch.Tensor) -> Any:
            seen[key].append(output.detach().reshape(-1, output.shape[-1]) > above)
            return torch.where(output > above, output, 0.0) if drelu or above else output

        return keep

    for layer in layers:
        for name in names:
            modules[f"{layer}.{name}"].register_forward_hook(hook((layer, name)))
    with torch.no_grad():
        for row in ids:
            model(input_ids=row[None], use_cache=False)
    return [torch.stack([torch.cat(seen[layer, name]) for name in names]).all(0).sum(0).tolist() for layer in layers]


def same(folder: Path, expected: list[list[int]]) -> None:
    """The files of `folder` hold these counts, which are not trivial."""
    found = [counts.tolist() for counts in read_statistics(folder).counts]
    assert found == expected
    assert all(len(set(counts)) > 5 for counts in expected)


@pytest.mark.parametrize(("kind", "drelu"), [("opt", False), ("falcon", False), ("llama", False), ("llama", True)])
def test_counts_are_those_of_the_whole_model(tmp_path: Path, kind: str, drelu: bool) -> None:
    model = tiny(tmp_path / "hf", kind)
    found = collect(tmp_path / "hf", TEXT, tmp_path / "out", window=32, drelu=drelu)
    names = [MAPS[kind], "mlp.up_proj"] if drelu else [MAPS[kind]]
    expected = directly(model, names, drelu)
    same(tmp_path / "out", expected)
    assert (found.layers, found.width, found.tokens) == (3, 64, 192)
    assert torch.load(tmp_path / "out" / "activation_0.pt").dtype == torch.int64
    assert sorted(entry.name for entry in (tmp_path / "out").iterdir()) == [f"activation_{n}.pt" for n in range(3)]
    chosen = split(read_statistics(tmp_path / "out"), capacity=64, grain=16)
    covered = sum(sum(layer[i] for i in bucket) for layer, bucket in zip(expected, chosen.index.buckets, strict=True))
    assert chosen.coverage == pytest.approx(covered / sum(map(sum, expected)))


def test_bamboo_is_a_mistral_with_two_relus(tmp_path: Path) -> None:
    """As its folders come: a model type that transformers does not have, and code beside it."""
    model = tiny(tmp_path / "hf", "mistral")
    auto = {"AutoConfig": "configuration_bamboo.BambooConfig", "AutoModel": "modeling_bamboo.BambooModel"}
    changed(tmp_path / "hf", model_type="bamboo", architectures=["BambooForCausalLM"], auto_map=auto)
    (tmp_path / "hf" / "configuration_bamboo.py").write_text("raise SystemExit('code of a model was run')")
    collect(tmp_path / "hf", TEXT, tmp_path / "out", window=32)
    same(tmp_path / "out", directly(model, ["mlp.gate_proj", "mlp.up_proj"], True))


def test_fatrelu_counts_what_is_above_its_threshold(tmp_path: Path) -> None:
    model = tiny(tmp_path / "hf", "llama")
    changed(tmp_path / "hf", hidden_act="fatrelu", hidden_act_param=0.25)
    collect(tmp_path / "hf", TEXT, tmp_path / "out", window=32)
    same(tmp_path / "out", directly(model, ["mlp.gate_proj"], False, 0.25))
    changed(tmp_path / "hf", hidden_act_param="much")
    with pytest.raises(ConfigError, match="threshold of FATReLU"):
        collect(tmp_path / "hf", TEXT, tmp_path / "other", window=32)


def test_pickled_weights(tmp_path: Path) -> None:
    """OPT and ReluLLaMA are published as pytorch_model.bin; a pickle that calls something is refused."""
    model = tiny(tmp_path / "hf", "opt")
    (tmp_path / "hf" / "model.safetensors").unlink()
    file = tmp_path / "hf" / "pytorch_model.bin"
    torch.save(model.model.state_dict(), file)  # names without the prefix, as facebook/opt-125m has them
    collect(tmp_path / "hf", TEXT, tmp_path / "out", window=32)
    same(tmp_path / "out", directly(model, ["fc1"], False))
    file.write_bytes(pickle.dumps({"decoder.layers.0.fc1.weight": Calls(str(tmp_path / "planted"))}, 2))
    with pytest.raises(CrossdockError):
        collect(tmp_path / "hf", TEXT, tmp_path / "other", window=32)
    assert not (tmp_path / "planted").exists()
    assert not (tmp_path / "other").exists()


def test_a_stopped_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny(tmp_path / "hf", "llama")
    whole = collect(tmp_path / "hf", TEXT, tmp_path / "whole", window=32)

    def stop(done: int, total: int, name: str) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        collect(tmp_path / "hf", TEXT, tmp_path / "out", window=32, progress=stop)
    assert not (tmp_path / "out").exists()
    with pytest.raises(UsageError, match="another model or text"):
        collect(tmp_path / "hf", TEXT + " w1" * 50, tmp_path / "out", window=32)
    layers: list[str] = []
    real = module._through
    monkeypatch.setattr(module, "_through", lambda *a: (layers.append(a[2]), real(*a))[1])
    resumed = collect(tmp_path / "hf", TEXT, tmp_path / "out", window=32)
    assert (whole.resumed_at, resumed.resumed_at, layers) == (0, 2, ["layers.2"])
    pairs = zip(read_statistics(tmp_path / "whole").counts, read_statistics(tmp_path / "out").counts, strict=True)
    assert all(np.array_equal(one, other) for one, other in pairs)


def test_what_cannot_be_counted(tmp_path: Path) -> None:
    tiny(tmp_path / "hf", "llama")
    config = tmp_path / "hf" / "config.json"
    given = config.read_text()
    config.write_text(given.replace('"relu"', '"silu"'))
    with pytest.raises(ConfigError, match="needs a ReLU model"):
        collect(tmp_path / "hf", TEXT, tmp_path / "out")
    config.write_text(given.replace('"num_hidden_layers": 3', '"num_hidden_layers": 4'))
    with pytest.raises(PlanError, match=r"layers\.3"):
        collect(tmp_path / "hf", TEXT, tmp_path / "out")
    with pytest.raises(UsageError, match="no tokens"):
        collect(tmp_path / "hf", "", tmp_path / "out")
