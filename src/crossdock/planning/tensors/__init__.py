"""From stored tensors to canonical tensors to the containers of a target: boxes and extents."""
