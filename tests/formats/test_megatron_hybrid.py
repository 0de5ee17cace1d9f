"""Args and names of Megatron's HybridModel: patterns, numbers of layers, what is no GPTModel."""

from __future__ import annotations

from typing import Any

import pytest

from crossdock.errors import ConfigError, FormatError
from crossdock.formats.megatron.hybrid import Fold, Stack, as_gpt, stack_of
from crossdock.formats.megatron.other_models import refuse_other_models
from crossdock.formats.megatron.stages import layer_counts, layer_ranges
from crossdock.formats.stored import Extent, StoredTensor


@pytest.mark.parametrize(
    ("args", "letters", "segments", "folds"),
    [
        ({"hybrid_layer_pattern": "*-*E", "num_layers": 4}, "*-*E", (4,), True),
        ({"hybrid_layer_pattern": "*-*|-*-/*-/*-", "num_layers": 6}, "*-*-*-", (3, 3), True),
        ({"hybrid_override_pattern": "+-+E", "num_layers": 4}, "+-+E", (4,), True),
        ({"hybrid_layer_pattern": "GEGEGE*E", "num_layers": 8}, "GEGEGE*E", (8,), True),
        ({"hybrid_layer_pattern": "M-M*-M", "num_layers": 6}, "M-M*-M", (6,), False),
        ({"hybrid_layer_pattern": "-*-*", "num_layers": 4}, "-*-*", (4,), False),
        ({"hybrid_layer_pattern": "*-*", "num_layers": 3}, "*-*", (3,), False),
        # allocate_layers of core_v0.16.1 with these numbers
        ({"hybrid_attention_ratio": 0.25, "num_layers": 8}, "MM*MM*MM", (8,), False),
        ({"hybrid_attention_ratio": 0.125, "hybrid_mlp_ratio": 0.5, "num_layers": 8}, "M-M-*-M-", (8,), False),
        ({"is_hybrid_model": True, "num_layers": 3}, "MMM", (3,), False),
        ({"hybrid_attention_ratio": 0.0, "hybrid_mlp_ratio": 0.0, "is_hybrid_model": False}, None, (), False),
    ],
)
def test_patterns(args: dict[str, Any], letters: str | None, segments: tuple[int, ...], folds: bool) -> None:
    stack = stack_of(args, "args")
    assert (stack and stack.letters) == letters
    if stack is not None:
        assert (stack.segments, stack.folds) == (segments, folds)


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        ({"hybrid_layer_pattern": "*-*-", "num_layers": 3}, "another number of layers than args"),
        ({"hybrid_layer_pattern": "*-X-", "num_layers": 4}, "is not understood"),
        ({"hybrid_layer_pattern": ["*", "-"]}, "is not understood"),
        ({"hybrid_attention_ratio": 0.9, "hybrid_mlp_ratio": 0.9, "num_layers": 4}, "give no layers"),
        ({"hybrid_attention_ratio": "a", "num_layers": 4}, "give no layers"),
        ({"hybrid_attention_ratio": 0.1}, "give no layers"),
    ],
)
def test_patterns_that_lie(args: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        stack_of(args, "args")


def test_args_of_the_gpt_model() -> None:
    """window_attn_skip_freq and no_rope_freq count all layers: is_layer_window_attention of layer_number."""
    stack = Stack("*-*E*E", (6,))
    args = {
        "num_layers": 6, "num_experts": 4, "moe_layer_freq": 1, "window_attn_skip_freq": 3,
        "no_rope_freq": [0, 1, 1, 0, 0, 1], "hybrid_layer_pattern": "*-*E*E", "is_hybrid_model": True,
        "spec": ["megatron.core.models.hybrid.hybrid_layer_specs", "hybrid_stack_spec"], "hidden_size": 64,
    }  # fmt: skip
    assert as_gpt(args, stack) == {
        "num_layers": 3, "num_experts": 4, "moe_layer_freq": [0, 1, 1], "window_attn_skip_freq": [1, 0, 1],
        "no_rope_freq": [0, 1, 0], "hidden_size": 64,
    }  # fmt: skip
    dense = as_gpt({"num_layers": 4, "num_experts": 4, "window_attn_skip_freq": 2}, Stack("*-*-", (4,)))
    assert (dense["num_experts"], dense["window_attn_skip_freq"]) == (None, [1, 1])
    linear = as_gpt({"num_layers": 4, "num_experts": 4, "linear_attention_freq": 4}, Stack("GE*E", (4,)))
    assert linear["linear_attention_freq"] == [1, 0]
    assert as_gpt({"spec": ["a.b", "own_spec"]}, stack)["spec"] == ["a.b", "own_spec"]


@pytest.mark.parametrize(
    ("stages", "chunks", "segments", "expected"),
    [
        (1, 1, (8,), {("pp0.vpp0", 3): ("pp0.vpp0", 1)}),
        (2, 1, (3, 5), {("pp0.vpp0", 2): ("pp0.vpp0", 1), ("pp1.vpp0", 0): ("pp0.vpp0", 1),
                        ("pp1.vpp0", 1): ("pp1.vpp0", 0), ("pp1.vpp0", 4): ("pp1.vpp0", 1)}),
        (2, 2, (2, 1, 3, 2), {("pp1.vpp0", 0): ("pp1.vpp0", 0), ("pp0.vpp1", 0): ("pp1.vpp0", 0),
                              ("pp0.vpp1", 1): ("pp0.vpp1", 0), ("pp1.vpp1", 1): ("pp1.vpp1", 0)}),
        (2, 1, (1, 7), {("pp1.vpp0", 0): ("pp0.vpp0", 0), ("pp1.vpp0", 6): ("pp1.vpp0", 2)}),
    ],
    ids=["one", "cut-through-a-layer", "chunks", "first-alone"],
)  # fmt: skip
def test_a_layer_is_on_the_stage_of_its_mixer(
    stages: int, chunks: int, segments: tuple[int, ...], expected: dict[tuple[str, int], tuple[str, int]]
) -> None:
    counts = layer_counts({"num_layers": sum(segments)}, stages, chunks, "args", segments)
    fold = Fold(Stack("*-*-*-*E", segments), layer_ranges(counts, stages))
    for (chunk, number), (home, layer) in expected.items():
        for rank in ("tp1", "etp0.ep1"):
            key = fold.key((f"{rank}.{chunk}", f"decoder.layers.{number}.mlp.linear_fc2.weight"))
            assert key == (f"{rank}.{home}", f"decoder.layers.{layer}.mlp.linear_fc2.weight")
    assert fold.key(("tp0.pp0.vpp0", "decoder.final_norm.weight"))[1] == "decoder.final_layernorm.weight"


def test_a_tensor_that_its_letter_does_not_have() -> None:
    stored = StoredTensor(
        "decoder.layers.1.self_attention.linear_proj.weight", (2,), "float32", (Extent(0, 0, 8, (0,), (2,)),)
    )
    with pytest.raises(FormatError, match="layer 1 of the HybridModel is '-' in its pattern"):
        Fold(Stack("*-*-", (4,))).tensors({("", stored.name): stored})


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        (["encoder.layers.0.mlp.x", "decoder.layers.0.cross_attention.linear_q.weight"], "cross attention \\(T5\\)"),
        (["encoder.layers.self_attention.x", "decoder.layers.cross_attention.linear_q.weight"], "cross attention"),
        (["encoder.layers.0.mlp.linear_fc1.weight", "binary_head.weight", "lm_head.dense.weight"], "\\(BERT\\)"),
        (["language_model.encoder.layers.0.mlp.x", "binary_head.weight"], "\\(BERT\\)"),
        (["decoder.layers.self_attention.linear_qkv.adapter.linear_in.weight"], "pairs of an adapter"),
        (
            ["decoder.layers.0.self_attention.linear_qkv.adapter.adapter_q.linear_out.weight"],
            "pairs of an adapter",
        ),
    ],
)
def test_other_models_are_named_in_one_sentence(names: list[str], sentence: str) -> None:
    with pytest.raises(FormatError, match=sentence) as caught:
        refuse_other_models(names, "here")
    assert len(caught.value.problems) == 1


def test_decoders_are_not_other_models() -> None:
    refuse_other_models(["language_model.encoder.layers.0.x", "language_model.encoder.final_layernorm.weight"], "here")
    refuse_other_models(["embedding.word_embeddings.weight", "decoder.layers.0.mlp.linear_fc1.weight"], "here")
