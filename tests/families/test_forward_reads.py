"""Each family against the reference forward: the tensors that it declares are those that the forward reads, and every
field of a configuration that changes what a model computes is obeyed by the forward for some family."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import crossdock.model.forward as module
from crossdock.model.config import FIELDS, ModelConfig
from crossdock.model.families import family
from crossdock.model.family import Sizes, is_allowed
from crossdock.model.forward import forward
from crossdock.model.layers.layer import Array
from support.canonical_models import FAMILIES, config_of

# fields that say how a model is stored or used, not what it computes; text has the same position in every section
NOT_COMPUTED = {
    "family", "dtype", "bos_token_id", "eos_token_id", "pad_token_id", "lora_ranks", "tie_word_embeddings",
    "kv_shared_weights", "mrope_section", "mrope_interleaved", "num_nextn_predict_layers", "nextn_embed", "nextn_head",
}  # fmt: skip
# sizes that the forward takes from the tensors themselves
FROM_TENSORS = {
    "num_experts", "moe_intermediate_size", "v_head_dim", "sliding_v_head_dim", "index_head_dim",
    "linear_key_head_dim", "linear_value_head_dim", "linear_conv_kernel_dim", "mamba_d_inner", "mamba_d_state",
    "mamba_d_conv", "mamba_dt_rank", "mamba_d_head", "short_conv_kernel", "laurel_rank",
}  # fmt: skip
TOKENS = (1, 0, 3)


class Recorded:
    """Random weights of the family's own shapes, which notes the names that are asked for."""

    def __init__(self, config: ModelConfig) -> None:
        chosen = family(config.family)
        self.axes = {name: decl.axes for name, decl in chosen.present(config).items()}
        self.sizes: Sizes = chosen.sizes(config)
        self.layers = {name: chosen.layers_of(decl, config) for name, decl in chosen.present(config).items()}
        self.same = {name: decl.same_as for name, decl in chosen.tensors.items() if decl.same_as}
        self.read: set[tuple[str, int | None]] = set()

    @property
    def declared(self) -> set[tuple[str, int | None]]:
        return {(name, layer) for name, layers in self.layers.items() for layer in layers or (None,)}

    def whole(self, name: str, layer: int | None = None) -> Array:
        name = name if name in self.axes else self.same.get(name, name)
        self.read.add((name, layer))
        if name not in self.axes or layer not in (self.layers[name] or (None,)):
            pytest.fail(f"{name} of layer {layer} is read by the forward and not declared")
        sizes = self.sizes.of(self.axes[name], layer)
        return np.random.default_rng(len(name)).standard_normal(tuple(sizes.values())).astype(np.float32)

    def blocks(self, name: str, layer: int | None = None, expert: int | None = None) -> Iterator[Array]:
        tensor = self.whole(name, layer)
        yield tensor if expert is None else tensor[expert]

    def rows(self, name: str, numbers: NDArray[np.int64]) -> Array:
        return np.asarray(self.whole(name)[numbers])


def obeyed(config: ModelConfig) -> tuple[Recorded, set[str]]:
    """What one forward reads: the recorded weights, and the names of the fields."""
    fields: set[str] = set()

    class Noted(ModelConfig):
        def __getattribute__(self, name: str) -> Any:
            if name in FIELDS:
                fields.add(name)
            return object.__getattribute__(self, name)

    weights = Recorded(config)
    noted = Noted(**config.as_dict())
    fields.clear()
    forward(noted, weights, TOKENS)
    return weights, fields


def fitting(name: str) -> ModelConfig:
    """A small configuration of what the family allows, with all experts chosen, so that each is read."""
    config = config_of(name)
    fits = family(name).requires
    example = {"fraction": 0.5, "positive": 1}
    changes = {
        field: example.get(allowed[0], allowed[0])
        for field, allowed in fits.items()
        if not is_allowed(getattr(config, field), allowed)
    }
    return replace(config, num_experts_per_tok=config.num_experts, **changes)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_tensors_of_a_family_are_those_that_the_forward_reads(name: str) -> None:
    weights, _ = obeyed(fitting(name))
    unread = sorted({name for name, _ in weights.declared - weights.read})
    assert not unread, f"{', '.join(unread)}: declared, and not read by the forward"


def test_the_forward_obeys_every_field_that_changes_what_a_model_computes() -> None:
    configs = [fitting(name) for name in FAMILIES]
    configs += [replace(config, n_group=2, topk_group=2) for config in configs if config.num_experts]
    fields = set().union(*(obeyed(config)[1] for config in configs))
    assert not NOT_COMPUTED & fields
    assert set(FIELDS) - named_in_the_forward() == NOT_COMPUTED | FROM_TENSORS


def named_in_the_forward() -> set[str]:
    """The fields that the forward and its layers name, for those that no family has yet."""
    model = Path(module.__file__).parent
    files = [model / "forward.py", model / "config.py", *(model / "layers").glob("*.py")]
    trees = [ast.parse(file.read_text(encoding="utf-8")) for file in files]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    named = {node.attr for node in nodes if isinstance(node, ast.Attribute)} & set(FIELDS)
    return named - {"dtype"}  # arrays have one, too


def test_an_undeclared_tensor_is_noticed() -> None:
    with pytest.raises(pytest.fail.Exception, match="attn_q_norm of layer 0 is read by the forward and not declared"):
        obeyed(config_of("llama", qk_norm=True))
