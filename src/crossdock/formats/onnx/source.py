"""Folders with a graph beside the weights as a source: the Hugging Face folder, once the graph was found sound.

The graph adds nothing to what the folder says; what is wrong with it is an error here, so that nobody takes the folder
for one that runs. Needs the package `onnx`; `--format hf` reads the weights without it.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from crossdock.errors import EnvironmentProblem
from crossdock.formats.hf.source import open_source as open_hf
from crossdock.formats.onnx.target import GRAPH, INSTALL, installed
from crossdock.formats.stored import Source


def sniff(path: Path) -> bool:
    """A folder with config.json and model.onnx."""
    return path.is_dir() and (path / GRAPH).is_file() and (path / "config.json").is_file()


def open_source(path: Path, *, iteration: int | None = None) -> Source:
    """The weights, with the graph in the notes.

    Raises what a Hugging Face folder raises, FormatError for a graph that is broken or foreign, EnvironmentProblem.
    """
    if not installed():
        fix = f"{INSTALL}, or --format hf, which reads the weights alone"
        raise EnvironmentProblem(f"the Python package onnx is needed to read {GRAPH}", where=str(path), fix=fix)
    from crossdock.formats.onnx.reading import read_graph

    weights = open_hf(path)
    graph = read_graph(path / GRAPH, weights)
    return replace(weights, format="onnx", layout_of="hf", notes={**weights.notes, **graph.notes})
