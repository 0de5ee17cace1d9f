"""Counted activations against a direct count in transformers, on tiny models of each family."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import tokenizers
from crossdock.errors import ConfigError, PlanError, UsageError
from crossdock.powerinfer import collect as module
from crossdock.powerinfer.collect import collect
from crossdock.powerinfer.split import split
from crossdock.powerinfer.statistics import read_statistics

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
MAPS = {"opt": "fc1", "falcon": "mlp.dense_h_to_4h", "llama": "mlp.gate_proj"}


def tiny(folder: Path, kind: str, drelu: bool = False) -> Any:
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


def directly(model: Any, names: list[str], drelu: bool) -> list[list[int]]:
    """The whole model over the same windows of 32, with hooks of the test's own."""
    ids = torch.tensor([1 + WORDS.index(word) for word in TEXT.split()])[: 200 // 32 * 32].reshape(-1, 32)
    modules = dict(model.named_modules())
    layers = sorted({name.removesuffix("." + names[0]) for name in modules if name.endswith("." + names[0])})
    seen: dict[tuple[str, str], torch.Tensor] = {}

    def hook(key: tuple[str, str]) -> Any:
        def keep(module: Any, args: Any, output: torch.Tensor) -> Any:
            seen[key] = output.detach().reshape(-1, output.shape[-1])
            return output.relu() if drelu else output

        return keep

    for layer in layers:
        for name in names:
            modules[f"{layer}.{name}"].register_forward_hook(hook((layer, name)))
    with torch.no_grad():
        model(input_ids=ids, use_cache=False)
    return [torch.stack([seen[layer, name] > 0 for name in names]).all(0).sum(0).tolist() for layer in layers]


@pytest.mark.parametrize(("kind", "drelu"), [("opt", False), ("falcon", False), ("llama", False), ("llama", True)])
def test_counts_are_those_of_the_whole_model(tmp_path: Path, kind: str, drelu: bool) -> None:
    model = tiny(tmp_path / "hf", kind)
    found = collect(tmp_path / "hf", TEXT, tmp_path / "out", window=32, drelu=drelu)
    names = [MAPS[kind], "mlp.up_proj"] if drelu else [MAPS[kind]]
    expected = directly(model, names, drelu)
    statistics = read_statistics(tmp_path / "out")
    # a value within rounding of 0 may fall on either side: sums in another order
    for mine, theirs in zip(statistics.counts, expected, strict=True):
        assert np.abs(mine - theirs).max() <= 1
        assert np.abs(mine - theirs).sum() <= 2
        assert len(set(theirs)) > 5
    assert (found.layers, found.width, found.tokens) == (3, 64, 192)
    assert torch.load(tmp_path / "out" / "activation_0.pt").dtype == torch.int64
    assert sorted(entry.name for entry in (tmp_path / "out").iterdir()) == [f"activation_{n}.pt" for n in range(3)]
    chosen = split(statistics, capacity=64, grain=16)
    covered = sum(sum(layer[i] for i in bucket) for layer, bucket in zip(expected, chosen.index.buckets, strict=True))
    assert chosen.coverage == pytest.approx(covered / sum(map(sum, expected)), abs=2e-3)


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
