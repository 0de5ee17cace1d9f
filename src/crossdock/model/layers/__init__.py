"""The layers of the reference forward, one idea a module. Each reads its canonical tensors by name."""
