"""Megatron's per-rank checkpoints (`--ckpt-format torch`): a torch.save file per tensor, pipeline and expert rank.

Reads the pickles, never tensor data; the optimizer beside the weights is left alone. Which rank a folder is cannot
be told from its name alone (`mp_rank_00_001`: pipeline or expert rank 1), so args decide. Facts from megatron-core 0.11
to 0.19.2 and Megatron-LM d98e8a6 (`megatron/training/checkpointing.py`, `get_checkpoint_name`).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from crossdock.errors import ConfigError, FormatError, NotACheckpointError, Problem, UsageError
from crossdock.formats.fp8.megatron import RankPlace, of_ranks
from crossdock.formats.megatron.args import is_weight, parallel_sizes, plain_args, run_notes
from crossdock.formats.megatron.hybrid import UNSCALED, Fold, Stack, as_gpt, stack_of, stacked_args
from crossdock.formats.megatron.masters.ranks import BESIDE, RankFile, of_rank_files
from crossdock.formats.megatron.older import check_version, core_name, is_older
from crossdock.formats.megatron.other_models import refuse_other_models
from crossdock.formats.megatron.root import RANK, Folder
from crossdock.formats.megatron.shared_heads import joined
from crossdock.formats.megatron.stages import layer_counts, layer_ranges
from crossdock.formats.stored import Masters, Source, SourceFile, StoredTensor, TrainingScales
from crossdock.formats.weight_file import stored
from crossdock.layout.partitions import RankRanges
from crossdock.torchfile import open_torch, state_tensors
from crossdock.unpickle import TensorRef, printable

FILES = ("model_optim_rng.pt", "model_rng.pt")
MAX_RANKS = 65_536  # files of one checkpoint
EXPERT = ".mlp.experts."
GROUPED = re.compile(r"\.mlp\.experts\.weight([12])\Z")
LAYER = re.compile(r"decoder\.layers\.(\d{1,9})\.")
NOT_WEIGHTS: Mapping[str, str] = {
    "optimizer": "optimizer state",
    "opt_param_scheduler": "learning rate schedule",
    "lr_scheduler": "learning rate schedule",
    "rng_state": "random number generators",
    "rerun_state_machine": "state of Megatron's fault detection",
}


class Rank(NamedTuple):
    """Where a file stands: tensor, pipeline, expert and expert tensor rank."""

    tp: int
    pp: int
    ep: int
    etp: int


@dataclass(frozen=True, slots=True)
class Sizes:
    """How many ranks and virtual chunks there are."""

    tp: int
    pp: int
    ep: int
    etp: int
    vpp: int

    @property
    def grid(self) -> set[tuple[int, int]]:
        """The (tensor, expert) ranks of one stage that save a file."""
        return {(r % self.tp, (r // self.etp) % self.ep) for r in range(max(self.tp, self.etp * self.ep))}


@dataclass(slots=True)
class _Found:
    """What was collected from the files so far."""

    files: list[SourceFile] = field(default_factory=list)
    tensors: dict[tuple[str, str], StoredTensor] = field(default_factory=dict)
    layers: dict[tuple[int, int], set[int]] = field(default_factory=dict)
    skipped: Counter[str] = field(default_factory=Counter)
    problems: list[Problem] = field(default_factory=list)
    places: list[RankPlace] = field(default_factory=list)
    older: bool = False


def open_ranks(root: Path, folder: Folder) -> Source:
    """Open a folder of mp_rank_* folders. Raises NotACheckpointError, FormatError, ConfigError, UnsafePickleError."""
    by_name = _rank_files(folder.path)
    first = next(iter(by_name))
    common = _common(by_name[first])
    args = plain_args(common, str(by_name[first]))
    sizes = _sizes(args, common, by_name)
    if max(sizes.tp, sizes.etp * sizes.ep) * sizes.pp > MAX_RANKS:
        raise ConfigError("implausibly many ranks", where=str(by_name[first]), expected=f"at most {MAX_RANKS:,}")
    ranks = _ranks(by_name, sizes)
    found = _Found()
    for name, rank in sorted(ranks.items(), key=lambda item: (item[1].pp, item[1].tp, item[1].ep)):
        state = common if name == first else _common(by_name[name])
        _check_same_run(state, common, by_name[name], found)
        _collect(by_name[name], state, rank, sizes, args, found)
    refuse_other_models({name for _, name in found.tensors}, str(folder.path))
    found.tensors = joined(found.tensors, sizes.tp, args)
    where = f"args in {first}/{by_name[first].name}"
    stack = stack_of(args, where)
    ranges = _ranges(args, sizes, found, where, stack)
    if found.problems:
        raise FormatError(found.problems)
    notes = dict(folder.notes) | run_notes(common, args) | {"files": str(len(found.files))}
    scales: Callable[[], TrainingScales] = partial(of_ranks, tuple(found.places))
    masters: Callable[[], Masters] = partial(
        of_rank_files, found.tensors, tuple(found.files), _rank_parts(found), folder.path
    )
    notices: tuple[str, ...] = ()
    if found.older:
        notes["names"] = "a model from before megatron-core; shown under core's names"
        args |= {"use_legacy_models": True}  # as later versions say it
    if stack is not None and stack.folds:
        fold = Fold(stack, ranges)
        notes["names"] = f"a HybridModel of {len(stack.letters)} layers ({stack.letters}), shown as a GPTModel"
        found.tensors, args, ranges = fold.tensors(found.tensors), as_gpt(args, stack), fold.gpt_ranges
        scales, masters = partial(fold.scales, scales), partial(fold.masters, masters)
        notices = (UNSCALED,) if args.get("use_rope_scaling") else ()
    if stack is not None and not stack.folds:
        args = stacked_args(args, stack)
    weights = sum(e.nbytes for tensor in found.tensors.values() for e in tensor.extents)
    beside = [file for path in by_name.values() for file in path.parent.glob(BESIDE)]
    skipped = {f"{kind} ({n:,} files)": NOT_WEIGHTS[kind] for kind, n in found.skipped.items()}
    if beside:
        skipped[f"{BESIDE} ({len(beside)} files)"] = "optimizer state"
    total = sum(file.size for file in found.files) + sum(SourceFile.of(file).size for file in beside)
    return Source(
        format="megatron_rank",
        root=root,
        files=tuple(found.files),
        tensors=found.tensors,
        metadata=args,
        metadata_at=where,
        ranks={"tp": sizes.tp, "pp": sizes.pp, "ep": sizes.ep, "etp": sizes.etp, "vpp": sizes.vpp},
        partitions={"layer": ranges},
        skipped=skipped,
        skipped_bytes=max(0, total - weights),
        scales=scales,
        masters=masters,
        notes=notes,
        notices=notices,
    )


def _rank_parts(found: _Found) -> tuple[RankFile, ...]:
    """Every file with the parts of the model that its chunks are."""
    parts: dict[Path, set[str]] = {}
    for place in found.places:
        parts.setdefault(place.path, set()).update((place.part, place.experts))
    return tuple(RankFile(file.path, n, frozenset(parts.get(file.path, ()))) for n, file in enumerate(found.files))


def _rank_files(path: Path) -> dict[str, Path]:
    """Folder name -> its file, in ascending order of the names."""
    names = sorted(entry.name for entry in path.iterdir() if RANK.match(entry.name))
    if len(names) > MAX_RANKS:
        raise FormatError(f"{len(names)} rank folders", where=str(path), expected=f"at most {MAX_RANKS}")
    files, problems = {}, []
    for name in names:
        file = next((f for f in FILES if (path / name / f).is_file()), None)
        if file is None:
            problems.append(Problem(f"{FILES[0]} is missing", str(path / name), cause="an unfinished save or copy"))
        else:
            files[name] = path / name / file
    if problems:
        raise NotACheckpointError(problems)
    return files


def _common(file: Path) -> dict[Any, object]:
    """The dict that a rank saved, its tensors as places in the file."""
    root = open_torch(file).root
    if not isinstance(root, dict):
        raise FormatError("the file does not hold a dict of a training run", where=str(file))
    return root


def _chunks(state: Mapping[Any, object]) -> list[object]:
    """The model's chunks in order: `model`, or `model0`, `model1`, ... of virtual pipelines."""
    if "model" in state:
        return [state["model"]]
    chunks: list[object] = []
    while f"model{len(chunks)}" in state:
        chunks.append(state[f"model{len(chunks)}"])
    return chunks


def _sizes(args: Mapping[str, Any], common: Mapping[Any, object], files: Mapping[str, Path]) -> Sizes:
    numbers = [_numbers(name) for name in files]
    where = str(next(iter(files.values())))
    if not args:
        if any(len(n) > 1 for n in numbers):
            raise ConfigError(
                "the file has no args, and the folders' second number may be a pipeline or an expert rank",
                where=where,
                got=", ".join(list(files)[:4]),
                fix="convert a checkpoint that Megatron-LM saved with args, or a torch_dist one",
            )
        return Sizes(max(n[0] for n in numbers) + 1, 1, 1, max(n[0] for n in numbers) + 1, 1)
    parallel = parallel_sizes(args)
    tp, pp, ep = parallel["tensor"], parallel["pipeline"], parallel["expert"]
    etp = parallel["expert tensor"] if isinstance(args.get("expert_tensor_parallel_size"), int) else tp
    if not args.get("num_experts"):
        etp = tp if ep == 1 else etp
    if tp % etp:
        raise UsageError(
            f"expert tensor parallel size {etp} does not divide tensor parallel size {tp}, so the folders do not"
            " say which part of an expert a file holds",
            where=where,
            fix="save the checkpoint with --ckpt-format torch_dist",
        )
    width = 1 + (pp > 1) + (ep > 1)
    wrong = [name for name in files if len(_numbers(name)) != width]
    if wrong:
        raise FormatError(
            "the rank folders do not match the run that args describe",
            where=where,
            expected=f"{width} numbers for tensor {tp}, pipeline {pp}, expert {ep}",
            got=", ".join(wrong[:4]),
        )
    return Sizes(tp, pp, ep, etp, max(1, len(_chunks(common))))


def _numbers(name: str) -> tuple[int, ...]:
    return tuple(int(n) for n in name.removeprefix("mp_rank_").split("_"))


def _ranks(files: Mapping[str, Path], sizes: Sizes) -> dict[str, Rank]:
    """Every folder's rank. Raises FormatError that lists all that are missing or too many."""
    ranks = {}
    problems = []
    folder = next(iter(files.values())).parent.parent
    for name in files:
        tp, *rest = _numbers(name)
        pp = rest.pop(0) if sizes.pp > 1 else 0
        ep = rest.pop(0) if rest else 0
        if tp >= sizes.tp or pp >= sizes.pp or ep >= sizes.ep:
            problems.append(
                Problem(
                    "rank out of range for this run",
                    where=str(folder / name),
                    expected=f"tensor below {sizes.tp}, pipeline below {sizes.pp}, expert below {sizes.ep}",
                )
            )
        else:
            ranks[name] = Rank(tp, pp, ep, tp % sizes.etp)
    have = {(rank.tp, rank.pp, rank.ep) for rank in ranks.values()}
    missing = [(tp, pp, ep) for tp, ep in sorted(sizes.grid) for pp in range(sizes.pp) if (tp, pp, ep) not in have]
    names = [_folder(*rank, sizes) for rank in missing]
    problems += [Problem("this rank's folder is missing", where=str(folder / name)) for name in names[:40]]
    if problems:
        more = f" (and {len(names) - 40} more)" if len(names) > 40 else ""
        shape = f"tensor {sizes.tp}, pipeline {sizes.pp}, expert {sizes.ep}{more}"
        last = replace(problems[-1], cause=f"args say: {shape}", fix="copy all mp_rank_* folders")
        raise FormatError([*problems[:-1], last])
    return ranks


def _folder(tp: int, pp: int, ep: int, sizes: Sizes) -> str:
    name = f"mp_rank_{tp:02d}"
    name += f"_{pp:03d}" if sizes.pp > 1 else ""
    return name + (f"_{ep:03d}" if sizes.ep > 1 else "")


def _check_same_run(state: Mapping[Any, object], common: Mapping[Any, object], file: Path, found: _Found) -> None:
    mine, other = state.get("iteration"), common.get("iteration")
    if isinstance(mine, int) and isinstance(other, int) and mine != other:
        found.problems.append(
            Problem("the file is of another iteration", str(file), expected=str(other), got=str(mine))
        )


def _collect(
    file: Path, state: Mapping[Any, object], rank: Rank, sizes: Sizes, args: Mapping[str, Any], found: _Found
) -> None:
    """Register the tensors of one file; copies that another file already gave are left out."""
    where = str(file)
    chunks = _chunks(state)
    if len(chunks) != sizes.vpp:
        found.problems.append(
            Problem("not the model chunks of the other files", where, expected=str(sizes.vpp), got=str(len(chunks)))
        )
        return
    number = len(found.files)
    found.files.append(SourceFile.of(file))
    found.skipped.update(kind for kind in NOT_WEIGHTS if state.get(kind) is not None)
    for turn, chunk in enumerate(chunks):
        parts = tuple(f"{ranks}.pp{rank.pp}.vpp{turn}" for ranks in (f"tp{rank.tp}", f"etp{rank.etp}.ep{rank.ep}"))
        found.places.append(RankPlace(file, "model" if "model" in state else f"model{turn}", *parts))
        weights = dict(state_tensors(chunk, keep=is_weight, where=where))
        for name, ref in _named(weights, state, found, where):
            if layer := LAYER.match(name):
                found.layers.setdefault((rank.pp, turn), set()).add(int(layer[1]))
            part = parts[EXPERT in name]
            if (part, name) not in found.tensors:
                found.tensors[part, name] = _stored(name, ref, part, number, sizes, args, where)


def _named(
    weights: Mapping[str, TensorRef], state: Mapping[Any, object], found: _Found, where: str
) -> Iterable[tuple[str, TensorRef]]:
    """Return the tensors under megatron-core's names."""
    for prefix in ("module.", "model."):
        if weights and all(name.startswith(prefix) for name in weights):
            weights = {name.removeprefix(prefix): ref for name, ref in weights.items()}
    if any(map(is_older, weights)):
        check_version(state.get("checkpoint_version", 0), where)
        found.older = True
        return [(core_name(name), ref) for name, ref in weights.items()]
    return list(weights.items())


def _stored(
    name: str, ref: TensorRef, part: str, file: int, sizes: Sizes, args: Mapping[str, Any], where: str
) -> StoredTensor:
    shape = ref.shape
    grouped = GROUPED.search(name)
    if grouped:
        shape = _grouped_shape(name, ref, int(grouped[1]), sizes, args, where)
    whole = stored(name, ref, file)
    extents = tuple(replace(extent, origin=(0,) * len(shape), shape=shape) for extent in whole.extents)
    return replace(whole, shape=shape, extents=extents, part=part)


def _grouped_shape(
    name: str, ref: TensorRef, which: int, sizes: Sizes, args: Mapping[str, Any], where: str
) -> tuple[int, ...]:
    """GroupedMLP's matrices are views: weight1 of [experts, hidden, 2f], weight2 of [experts, f, hidden].

    (megatron-core 0.5 to 0.16, `moe/experts.py`: `self.weight1.view(num_local_experts, hidden_size, -1)`)
    """
    experts = args.get("num_experts")
    local = experts // sizes.ep if isinstance(experts, int) else 0
    ok = len(ref.shape) == 2 and ref.contiguous and local > 0 and ref.elements % local == 0
    hidden = (ref.shape[0] if which == 1 else ref.shape[1]) if ok else 0
    if not ok or not hidden or ref.elements % (local * hidden):
        raise FormatError(
            "cannot split the grouped expert weight into experts",
            where=f"{where}: {printable(name)}",
            expected=f"a contiguous matrix of {local} experts (num_experts in args)",
            got=f"shape {list(ref.shape)}",
        )
    inner = ref.elements // (local * hidden)
    return (local, hidden, inner) if which == 1 else (local, inner, hidden)


def _ranges(args: Mapping[str, Any], sizes: Sizes, found: _Found, where: str, stack: Stack | None) -> RankRanges:
    """The layers of every stage and chunk from args, held against those that the files have."""
    order = [(i % sizes.pp, i // sizes.pp) for i in range(sizes.pp * sizes.vpp)]
    have = [1 + max(found.layers.get(place, {-1})) for place in order]
    if not args:
        return layer_ranges(have, sizes.pp)
    counts = layer_counts(args, sizes.pp, sizes.vpp, where, stack.segments if stack is not None else ())
    gaps = bool(args.get("heterogeneous_layers_config_encoded_json"))  # such a layer may have nothing in it
    for place, count, held in zip(order, counts, have, strict=True):
        complete = gaps or (count == held == len(found.layers.get(place, ())))
        if (count < held or not complete) and not found.problems:
            found.problems.append(
                Problem(
                    f"pipeline stage {place[0]}, chunk {place[1]} does not hold the layers that args describe",
                    where=where,
                    expected=f"{count} layers",
                    got=f"{len(found.layers.get(place, ()))} (up to number {held - 1})",
                    cause="files of another run, or an unsupported way to distribute layers",
                )
            )
    return layer_ranges(counts, sizes.pp)
