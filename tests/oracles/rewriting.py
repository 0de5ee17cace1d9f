"""Model files taken apart and written again by the formats' own libraries (gguf-py, safetensors), with one change.

Nothing here is crossdock's: a fault is planted in what another program would have written.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass
class Gguf:
    """keys: name -> [value type, element type or None, value]; tensors: name -> [array, ggml type], both in order.

    Arrays are in numpy order; of block types they hold bytes. The architecture is the value of general.architecture.
    """

    keys: dict[str, list[Any]]
    tensors: dict[str, list[Any]]

    def array(self, name: str) -> Array:
        """The array of a tensor, to be changed in place."""
        found: Array = self.tensors[name][0]
        return found

    def put(self, name: str, array: Array) -> None:
        """Replace the array of a tensor."""
        assert not np.array_equal(array, self.tensors[name][0]), f"the fault leaves {name} as it was"
        self.tensors[name][0] = np.ascontiguousarray(array)

    def swap(self, one: str, other: str) -> None:
        """Exchange the arrays of two tensors."""
        a, b = self.array(one), self.array(other)
        self.put(one, b)
        self.put(other, a)

    def set(self, key: str, value: Any) -> None:
        """Replace the value of a key."""
        assert self.keys[key][2] != value
        self.keys[key][2] = value


def rewrite_gguf(source: Path, target: Path, change: Callable[[Gguf], None]) -> None:
    """Write the GGUF `source` again as `target`, after `change`."""
    reader = gguf.GGUFReader(source)
    keys = {
        name: [field.types[0], field.types[1] if len(field.types) > 1 else None, field.contents()]
        for name, field in reader.fields.items()
        if not name.startswith("GGUF.")
    }
    model = Gguf(keys, {t.name: [np.array(t.data), t.tensor_type] for t in reader.tensors})
    change(model)
    writer = gguf.GGUFWriter(target, model.keys.pop("general.architecture")[2])
    for name, (kind, element, value) in model.keys.items():
        writer.add_key_value(name, value, kind, sub_type=element)
    for name, (array, kind) in model.tensors.items():
        writer.add_tensor(name, array, raw_dtype=kind if array.dtype == np.uint8 else None)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@dataclass
class Folder:
    """A Hugging Face folder with one safetensors file: tensors as torch has them, config.json as a dict."""

    path: Path
    tensors: dict[str, Any]
    config: dict[str, Any]


def rewrite_hf(source: Path, target: Path, change: Callable[[Folder], None]) -> None:
    """Write the Hugging Face folder `source` again as `target`, after `change`."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(source, target)
    weights = target / "model.safetensors"
    config = json.loads((target / "config.json").read_text())
    folder = Folder(target, load_file(weights), config)
    before = json.dumps(config)
    change(folder)
    if json.dumps(folder.config) != before:
        (target / "config.json").write_text(json.dumps(folder.config))
    save_file({name: tensor.contiguous().clone() for name, tensor in folder.tensors.items()}, weights, {"format": "pt"})
