"""Ranks of a TensorRT-LLM checkpoint: which sizes fit a model, which layers a stage has, which file a part is.

Knows names of ranks and fields of the configuration, no tensor. Facts: TensorRT-LLM 0.14 `mapping.py`: rank =
pp_rank * tp_size + tp_rank; moe_tp_rank = tp_rank // moe_ep_size, moe_ep_rank = tp_rank % moe_ep_size.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import replace

from crossdock.errors import PlanError, Problem, UsageError
from crossdock.formats.target import Ranks
from crossdock.formats.trtllm.options import TrtllmOptions
from crossdock.layout.partitions import Partitions
from crossdock.model.config import ModelConfig

MOST = 4096  # ranks
_PART = re.compile(r"([a-z]+)(\d+)")


def file_name(rank: int) -> str:
    """The file of a rank."""
    return f"rank{rank}.safetensors"


def rank_of(part: str, tensor_parallel: int, moe_expert_parallel: int) -> int:
    """The rank of a part as the layout spells it: tp1.pp0, or etp0.ep1.pp0 for experts."""
    at = {name: int(number) for name, number in _PART.findall(part)}
    tp = at["tp"] if "tp" in at else at["etp"] * moe_expert_parallel + at["ep"]
    return at["pp"] * tensor_parallel + tp


def parts_of(rank: int, tensor_parallel: int, moe_expert_parallel: int) -> tuple[str, str]:
    """The part of a rank, and its part of the experts."""
    pp, tp = divmod(rank, tensor_parallel)
    etp, ep = divmod(tp, moe_expert_parallel)
    return f"tp{tp}.pp{pp}", f"etp{etp}.ep{ep}.pp{pp}"


def layer_ranges(layers: int, stages: int) -> tuple[tuple[int, int], ...]:
    """First and beyond last layer of each stage, as torch.tensor_split cuts: the first stages get one more."""
    ends = [0]
    for stage in range(stages):
        ends.append(ends[-1] + layers // stages + (stage < layers % stages))
    return tuple(itertools.pairwise(ends))


def partition(layers: int, stages: int) -> Partitions:
    """The same as a `Geometry` wants it."""
    return {"layer": {(("pp", stage),): span for stage, span in enumerate(layer_ranges(layers, stages))}}


def check(asked: TrtllmOptions) -> None:
    """Raises UsageError for numbers of ranks that no model can be cut over."""
    tp, pp = asked.tp, asked.pp
    if min(tp, pp) < 1 or tp * pp > MOST:
        raise UsageError("number of ranks out of range", got=f"--tp {tp} --pp {pp}", expected=f"1 to {MOST} ranks")
    if asked.embedding_sharding_dim not in (0, 1):
        got = f"--embedding-sharding-dim {asked.embedding_sharding_dim}"
        raise UsageError("an embedding has rows and columns", got=got, expected="0: cut its rows, 1: its columns")


def cut(config: ModelConfig, asked: TrtllmOptions) -> Ranks:
    """The ranks for a model. Raises PlanError with all that does not divide."""
    tp, pp = asked.tp, asked.pp
    ep = asked.moe_ep or (tp // asked.moe_tp if asked.moe_tp else 1)
    etp = asked.moe_tp or tp // max(ep, 1)
    problems = _misfits(config, asked, etp, ep)
    if problems:
        raise PlanError(problems)
    spans = layer_ranges(config.num_hidden_layers, pp)
    warnings: tuple[str, ...] = ()
    if asked.embedding_sharding_dim and not asked.use_parallel_embedding:
        warnings = (
            "--embedding-sharding-dim 1 changes nothing: the embedding is cut with --use-parallel-embedding only",
        )
    if config.num_hidden_layers % pp:
        counts = ", ".join(str(high - low) for low, high in spans)
        warnings += (
            f"{config.num_hidden_layers} layers over {pp} stages are {counts}: TensorRT-LLM up to 0.14 gives each "
            f"{config.num_hidden_layers // pp} and silently loses the rest",
        )
    return Ranks(
        sizes={"tp": tp, "pp": pp, "etp": etp, "ep": ep},
        partitions=partition(config.num_hidden_layers, pp),
        settings={
            "tensor_parallel": tp,
            "pipeline_parallel": pp,
            "moe_tensor_parallel": etp,
            "moe_expert_parallel": ep,
            "use_parallel_embedding": asked.use_parallel_embedding,
            "embedding_sharding_dim": asked.embedding_sharding_dim,
        },
        warnings=warnings,
    )


def _misfits(config: ModelConfig, asked: TrtllmOptions, etp: int, ep: int) -> list[Problem]:
    tp, pp = asked.tp, asked.pp
    problems = _uncut(config, asked, tp)
    if problems:
        fitting = [n for n in range(1, config.num_attention_heads + 1) if not _uncut(config, asked, n)]
        fix = f"tensor parallel sizes that fit this model: {', '.join(map(str, fitting))}"
        problems[-1] = replace(problems[-1], fix=fix)
    if pp > config.num_hidden_layers:
        what = f"{config.num_hidden_layers} layers cannot be split over {pp} stages"
        problems.append(Problem(what, where="num_hidden_layers"))
    if not config.num_experts:
        if asked.moe_tp or asked.moe_ep:
            problems.append(Problem("the model has no experts to split", where="--moe-tp, --moe-ep"))
        return problems
    if etp * ep != tp:
        got = f"--moe-tp {etp} * --moe-ep {ep} = {etp * ep}"
        problems.append(
            Problem(
                "the ranks of the experts do not multiply to the tensor parallel size", expected=f"--tp {tp}", got=got
            )
        )
    if config.num_experts % ep:
        fitting = [n for n in range(1, config.num_experts + 1) if config.num_experts % n == 0 and tp % n == 0]
        problems.append(Problem(f"{config.num_experts} experts cannot be split over {ep} ranks", where="num_experts",
                                fix=f"expert parallel sizes that fit: {', '.join(map(str, fitting))}"))  # fmt: skip
    if config.moe_intermediate_size % etp:
        fix = "keep experts whole with --moe-ep, or use fewer"
        what = f"{config.moe_intermediate_size} cannot be split over {etp} ranks"
        problems.append(Problem(what, where="moe_intermediate_size", fix=fix))
    return problems


def _uncut(config: ModelConfig, asked: TrtllmOptions, tp: int) -> list[Problem]:
    """What `tp` ranks cannot share evenly, outside the experts."""
    layers = range(config.num_hidden_layers)
    problems = []
    if config.num_attention_heads % tp:
        what = f"{config.num_attention_heads} heads cannot be split over {tp} ranks"
        problems.append(Problem(what, where="num_attention_heads"))
    for kv in sorted({config.kv_heads(layer) for layer in layers} - {0}):
        if kv % tp and tp % kv:
            cause = "KV heads must divide the ranks or be divided by them"
            problems.append(Problem(f"{kv} heads cannot be split over {tp} ranks", "num_key_value_heads", cause=cause))
    own = config.intermediate_size_per_layer
    dense = set(own) if own else {config.intermediate_size} if len(config.moe_layers) < len(layers) else set()
    for width in sorted(dense):
        if width % tp:
            problems.append(Problem(f"{width} cannot be split over {tp} ranks", where="intermediate_size"))
    columns = asked.use_parallel_embedding and asked.embedding_sharding_dim == 1
    if (columns or config.linear_attention_layers or config.linear_mlp_layers) and config.hidden_size % tp:
        problems.append(Problem(f"{config.hidden_size} cannot be split over {tp} ranks", where="hidden_size"))
    return problems
