"""PyTorch distributed checkpoints (DCP): their metadata, their data files, and a plain DCP folder as a source."""
