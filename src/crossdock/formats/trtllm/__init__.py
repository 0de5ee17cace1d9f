"""TensorRT-LLM checkpoints: config.json and one rankN.safetensors per rank, read and written.

A frozen format: TensorRT-LLM 0.8 to 1.2 builds engines from it, 1.3 and later load Hugging Face folders.
Facts: TensorRT-LLM 0.14.0.dev2024100800 (`models/modeling_utils.py`, `mapping.py`, the models' `config.py`), run on a
CPU, and Megatron-LM d98e8a6 (`megatron/core/export`).
"""
