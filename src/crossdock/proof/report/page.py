"""One page that says what `verify` found: verdict, faults, errors of tensors, logits, sizes, every tensor's source.

A single file: styles, plots and a few lines of script are inside, nothing is fetched, and without scripts nothing is
missing but the filter. What comes out of model files is text only; the page's own policy forbids any other script.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

from crossdock.codecs.error_stats import ErrorStats
from crossdock.errors import EnvironmentProblem, Problem, UsageError
from crossdock.io.atomic import write_whole
from crossdock.planning.plan import Plan, TargetTensor
from crossdock.plugins import DATA
from crossdock.proof.report.compared import compared_section
from crossdock.proof.report.logits import logits_section
from crossdock.proof.report.plots import Dot, colours, scatter, text
from crossdock.running.comparisons import TokensReport
from crossdock.running.verify import TensorCheck, VerifyReport
from crossdock.version import VERSION
from crossdock.wording import about, counted, duration, nbytes, number, shape

MOST = 30  # wrong tensors listed one by one
START = "<!doctype html>"
LAYER = re.compile(r"(?:^|\.)(\d+)\.")


@dataclass(frozen=True)
class Evidence:
    """What a report is made of. plan: what the output was held against, None where only an engine read it."""

    report: VerifyReport
    plan: Plan | None
    output: Path
    source: Path
    source_format: str


def place(page: Path) -> None:
    """See that a report can become the file `page`, before anything is compared for it. Only a report is replaced.

    Raises UsageError, OSError.
    """
    if page.is_dir() or not page.name:
        raise UsageError("the report is a file, and this is a folder", where=str(page), fix="--report report.html")
    if not page.parent.is_dir():
        raise EnvironmentProblem("the folder of the report does not exist", where=str(page.parent))
    if page.exists():
        if not page.is_file():
            raise UsageError("the report would replace a device or a pipe", where=str(page), fix="--report report.html")
        with page.open("rb") as file:
            if not START.encode().startswith(file.read(len(START))):
                raise UsageError("the report would replace this file, which is not a report", where=str(page),
                                 fix="choose another name for --report")  # fmt: skip


def write(page: Path, evidence: Evidence) -> None:
    """Write the report as the file `page`, whole or not at all. Raises UsageError, EnvironmentProblem."""
    write_whole(page, [render(evidence).encode()], "report")


def render(evidence: Evidence) -> str:
    """The page as text, UTF-8."""
    report, plan = evidence.report, evidence.plan
    style, script = (_inlined(name) for name in ("style.css", "filter.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    planned = {} if plan is None else {tensor.name: tensor for tensor in plan.tensors}
    body = [
        _verdict(evidence),
        _tiles(report),
        compared_section(report),
        _wrong(report),
        _errors(report.tensors),
        logits_section(report.logits) if report.logits else "",
        _tokens(report.tokens) if report.tokens else "",
        _sizes(report.tensors, planned, plan),
        _mapping(report.tensors, planned) if report.tensors else "",
        _footer(evidence),
    ]
    return (
        f'{START}\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{report.verdict if report.ok else report.verdict.upper()}: {text(evidence.output.name)}</title>\n"
        f"<style>{style}</style>\n</head>\n<body>\n"
        + "\n".join(filter(None, body))
        + f'\n<script type="module">{script}</script>\n</body>\n</html>\n'
    )


def _inlined(name: str) -> str:
    return (DATA / "report" / name).read_text(encoding="utf-8")


def _verdict(evidence: Evidence) -> str:
    report = evidence.report
    word = report.verdict.capitalize()
    sentence = f"{counted(len(report.tensors), 'tensor')}, {nbytes(report.nbytes)}, read in {duration(report.seconds)}"
    if not report.tensors:
        sentence = "Held against the source by logits alone"
    return (
        f'<header class="verdict{"" if report.ok else " bad"}"><h1>{"✓" if report.ok else "✗"} {word}</h1>'
        f'<p><span class="name">{text(evidence.output)}</span> <span class="soft">against</span> '
        f'<span class="name">{text(evidence.source)}</span> <span class="soft">({text(evidence.source_format)})</span>'
        f'</p><p class="soft">{text(sentence)}</p></header>'
    )


def _tiles(report: VerifyReport) -> str:
    tiles = []
    if report.tensors:
        equal = sum(one.status == "equal" for one in report.tensors)
        what = "to what converting the source gives"
        wrong = equal < len(report.tensors)
        tiles.append(_tile("tensors equal", f"{equal:,} / {len(report.tensors):,}", what, bad=wrong))
        figures = _sum(one.figures for one in report.tensors)
        if figures is None:
            tiles.append(_tile("values changed", "none", "every value is the source's, bit for bit"))
        else:
            tiles.append(_tile("relative error", f"{100 * figures.relative_rms:.3g}%", "root mean square, of values "
                               "that a type rounds"))  # fmt: skip
        count = len(report.problems)
        note = "keys and files beside the tensors"
        tiles.append(_tile("configuration", "equal" if not count else counted(count, "problem"), note, bad=count > 0))
    found = report.logits
    if found is not None and found.positions:
        if found.limit_distance is None:
            tiles.append(_tile("largest logit difference", f"{found.max_abs:.2g}",
                               f"at most {found.limit_max_abs:.2g}", bad=bool(found.failed)))  # fmt: skip
        else:
            tiles.append(_tile("distance of logits", f"{100 * found.distance:.3g}%",
                               f"at most {100 * found.limit_distance:.3g}%", bad=bool(found.failed)))  # fmt: skip
        tiles.append(_tile("best next token", f"{100 * found.top1:.4g}%", "of positions agree"))
        if found.perplexity_source is not None and found.perplexity_output is not None:
            tiles.append(
                _tile("perplexity", f"{found.perplexity_output:.5g}", f"the source's {found.perplexity_source:.5g}")
            )
    if (read := report.tokens) is not None:
        same = f"{read.texts - len(read.different):,} / {read.texts:,}"
        tiles.append(_tile("texts read alike", same, "by llama.cpp and the tokenizer", bad=not read.ok))
    return f'<dl class="tiles">{"".join(tiles)}</dl>'


def _tile(name: str, value: str, note: str, *, bad: bool = False) -> str:
    kind = "tile bad" if bad else "tile"
    return f'<div class="{kind}"><dt>{text(name)}</dt><dd>{text(value)}<small>{text(note)}</small></dd></div>'


def _sum(figures: Iterable[ErrorStats | None]) -> ErrorStats | None:
    known = [one for one in figures if one is not None]
    return sum(known[1:], known[0]) if known else None


def _wrong(report: VerifyReport) -> str:
    items = [_problem(problem) for problem in report.problems]
    wrong = [one for one in report.tensors if one.status != "equal"]
    for one in wrong[:MOST]:
        detail = f"{one.different:,} elements of {text(one.dtype)}" if one.different else text(one.dtype)
        figures = f", relative error {one.figures.relative_rms:.3g}" if one.figures else ""
        items.append(f'<li><span class="name">{text(one.name)}</span> is {one.status}<div>{detail}{figures}</div></li>')
    if len(wrong) > MOST:
        items.append(f"<li>… {len(wrong) - MOST} more tensors, in the table below</li>")
    if report.logits is not None:
        items += [f"<li>Logits: {text(sentence)}</li>" for sentence in report.logits.failed]
        items += [_problem(problem) for problem in report.logits.problems]
    if report.tokens is not None and report.tokens.different:
        items.append(f"<li>Token ids: llama.cpp reads {counted(len(report.tokens.different), 'text')} otherwise</li>")
    return f'<h2>What is wrong</h2><div class="wrong"><ul>{"".join(items)}</ul></div>' if items else ""


def _problem(problem: Problem) -> str:
    head, *rest = problem.lines()
    return f"<li>{text(head)}{''.join(f'<div>{text(line)}</div>' for line in rest)}</li>"


def _errors(tensors: Sequence[TensorCheck]) -> str:
    """How far the values of each tensor lie from the source's, in the order of the file."""
    dots: list[Dot] = []
    ticks: list[tuple[float, str]] = []
    seen: str | None = None
    for x, one in enumerate(tensors):
        layer = LAYER.search(one.name)
        if layer and layer[1] != seen:
            seen = layer[1]
            ticks.append((x, f"layer {seen}" if not ticks else seen))
        if one.figures is not None:
            value = one.figures.relative_rms
            says = f"{one.name} ({one.dtype}): relative {100 * value:.3g}%, largest {one.figures.max_abs:.3g}"
            dots.append(Dot(x, value, says, one.dtype, one.status != "equal"))
    if not dots:
        return ""
    keys = {name: colour for name, colour in _keys(tensors).items() if any(dot.group == name for dot in dots)}
    plot = scatter(dots, keys, len(tensors) - 1, ticks, percent=True, name="Relative error of each tensor")
    unchanged = len(tensors) - len(dots)
    rest = f" {counted(unchanged, 'tensor')} without such a difference {'is' if unchanged == 1 else 'are'} not shown."
    return (
        "<h2>How far values moved</h2>"
        '<p class="lead">Each dot is a tensor, in the order of the file; below are the layers. Its height is the root '
        f"mean square difference from the source's values, relative to them.{rest if unchanged else ''}</p>"
        f"<figure><figcaption><b>relative error</b>{_legend(keys, dots)}</figcaption>{plot}</figure>"
    )


def _keys(tensors: Sequence[TensorCheck]) -> Mapping[str, str]:
    """A colour for each type, the one that takes most bytes first."""
    sizes: dict[str, int] = {}
    for one in tensors:
        sizes[one.dtype] = sizes.get(one.dtype, 0) + one.nbytes
    return colours(sorted(sizes, key=lambda name: -sizes[name]))


def _legend(keys: Mapping[str, str], dots: Sequence[Dot]) -> str:
    out = [f'<i style="--key:{colour}">{text(name)}</i>' for name, colour in keys.items()]
    return "".join(out) + ('<i style="--key:var(--bad)">not equal</i>' if any(dot.wrong for dot in dots) else "")


def _tokens(report: TokensReport) -> str:
    """Which texts llama.cpp reads otherwise than the source's tokenizer."""
    ties = f", {report.ties:,} of them in an equally likely way" if report.ties else ""
    lead = (
        f"llama.cpp reads {report.texts - len(report.different):,} of {counted(report.texts, 'text')} made to differ "
        f"(runs of blanks, digits, scripts, emoji, code, special tokens) as {report.reader} does{ties}."
    )
    head = f'<h2>How both read text</h2><p class="lead">{text(lead)}</p>'
    rows = "".join(
        f'<tr class="bad"><td class="name">{text(repr(one.text))}</td><td class="name">{_ids(one.engine)}</td>'
        f'<td class="name">{_ids(one.source)}</td></tr>'
        for one in report.different[:MOST]
    )
    if not rows:
        return head
    more = len(report.different) - MOST
    rest = f'<p class="soft">… {more:,} more texts</p>' if more > 0 else ""
    return f"{head}<table>{_head('text', 'llama.cpp', 'source')}<tbody>{rows}</tbody></table>{rest}"


def _ids(ids: Sequence[int]) -> str:
    return " ".join(map(str, ids[:MOST])) + (" …" if len(ids) > MOST else "")


def _sizes(tensors: Sequence[TensorCheck], planned: Mapping[str, TargetTensor], plan: Plan | None) -> str:
    """What came from which type, and how many bytes it is now."""
    if not tensors:
        return ""
    groups: dict[tuple[str, str], list[TensorCheck]] = {}
    for one in tensors:
        before = "" if plan is None else _stored(plan, planned.get(one.name))
        groups.setdefault((before, one.dtype), []).append(one)
    largest = max(sum(one.nbytes for one in alike) for alike in groups.values())
    keys, errors = _keys(tensors), _error_heading(tensors)
    rows = []
    for (before, dtype), alike in sorted(groups.items(), key=lambda item: -sum(one.nbytes for one in item[1])):
        size = sum(one.nbytes for one in alike)
        elements = sum(prod(planned[one.name].shape) for one in alike if one.name in planned)
        figures = _sum(one.figures for one in alike)
        rows.append(
            f"<tr><td>{text(before or 'not from the source')}</td><td>{text(dtype)}</td>"
            f'<td class="n">{len(alike):,}</td><td class="n">{about(elements)}</td><td class="n">{nbytes(size)}</td>'
            f'<td class="bar"><div style="width:{100 * size / max(largest, 1):.1f}%;--key:{keys[dtype]}"></div></td>'
            f"{_error(figures, errors)}</tr>"
        )
    head = _head("source", "output", ">tensors", ">values", ">bytes", "", *errors)
    return f'<h2>Types and sizes</h2><table class="narrow">{head}<tbody>{"".join(rows)}</tbody></table>'


def _error_heading(tensors: Iterable[TensorCheck]) -> tuple[str, ...]:
    """No heading over a column without a figure."""
    return (">relative error",) if any(one.figures is not None for one in tensors) else ()


def _error(figures: ErrorStats | None, errors: Sequence[str]) -> str:
    if not errors:
        return ""
    return f'<td class="n">{"" if figures is None else f"{100 * figures.relative_rms:.3g}%"}</td>'


def _head(*names: str) -> str:
    """A table's head; names that begin with > are over numbers."""
    cells = (f'<th class="n">{name[1:]}</th>' if name.startswith(">") else f"<th>{name}</th>" for name in names)
    return f"<thead><tr>{''.join(cells)}</tr></thead>"


def _stored(plan: Plan, tensor: TargetTensor | None) -> str:
    if tensor is None:
        return ""
    if not tensor.moves:
        return "computed"
    return ", ".join(dict.fromkeys(plan.extents[move.extent].dtype for move in tensor.moves))


def _mapping(tensors: Sequence[TensorCheck], planned: Mapping[str, TargetTensor]) -> str:
    errors = _error_heading(tensors)
    rows = []
    for one in tensors:
        tensor = planned.get(one.name)
        sources = "".join(f"<div>{text(name)}</div>" for name in tensor.sources) if tensor else ""
        sizes = shape(tensor.shape) if tensor else ""
        rows.append(
            f'<tr{"" if one.status == "equal" else " class=bad"}><td class="name">{text(one.name)}</td>'
            f'<td class="n">{text(sizes)}</td><td>{text(one.dtype)}</td><td class="n">{number(one.nbytes)}</td>'
            f'<td class="name sources">{sources or "computed"}</td><td>{one.status}</td>'
            f"{_error(one.figures, errors)}</tr>"
        )
    names = ("tensor of the output", ">shape", "type", ">bytes", "tensors of the source", "is")
    head = _head(*names, *errors)
    table = f'<div class="roll"><table id="mapping">{head}<tbody>{"".join(rows)}</tbody></table></div>'
    return f"<h2>Where every tensor comes from</h2>{table}"


def _footer(evidence: Evidence) -> str:
    plan = evidence.plan
    made = f"crossdock {VERSION}"
    if plan is not None:
        made += f" · {plan.source_format} → {plan.target_format} · plan {plan.digest}"
        config = "".join(
            f'<tr><td class="name">{text(key)}</td><td class="name">{text(value)}</td>'
            f'<td class="soft">{text(plan.described.origins.get(key, ""))}</td></tr>'
            for key, value in plan.described.config.as_dict().items()
            if value not in (None, (), {})
        )
        left = "".join(
            f'<tr><td class="name">{text(key)}</td><td>{text(why)}</td></tr>' for key, why in plan.ignored.items()
        )
        folded = _folded("The source's configuration", config)
        if left:
            folded += _folded("Left out, and why", left)
        return f"<h2>The source</h2>{folded}<footer><p>{text(made)}</p></footer>"
    return f"<footer><p>{text(made)}</p></footer>"


def _folded(title: str, rows: str) -> str:
    return f"<details><summary>{text(title)}</summary><table><tbody>{rows}</tbody></table></details>"
