"""The optimizer's float32 weights in Megatron's saves, where a run in bf16 or fp16 keeps them (`--weights master`)."""
