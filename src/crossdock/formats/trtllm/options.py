"""What can be asked of a TensorRT-LLM checkpoint."""

from __future__ import annotations

from dataclasses import dataclass

from crossdock.formats.options import CacheOptions, TokenizerOptions
from crossdock.options import flag, option, positive, whole


@dataclass(frozen=True, kw_only=True)
class TrtllmOptions(TokenizerOptions, CacheOptions):
    """Over how many ranks the model is cut, and what each of them holds of the embedding.

    tp, pp          tensor parallel ranks and pipeline stages
    moe_tp, moe_ep  how the tensor parallel ranks share the experts; moe_tp * moe_ep = tp; 0: what is left over
    use_parallel_embedding  every rank has a part of the embedding: of its rows, or of its columns (sharding dim 1)
    allow_overflow  values too large for float16 become inf
    """

    tp: int = option("1", positive, "Tensor parallel ranks.", "N", also=("--tensor-parallel-size",))
    pp: int = option("1", positive, "Pipeline stages.", "N", also=("--pipeline-parallel-size",))
    moe_tp: int = option(0, whole, "Ranks per expert.  [default: tp / moe-ep]", "N")
    moe_ep: int = option(0, whole, "Ranks to spread experts over.  [default: tp / moe-tp]", "N")
    use_parallel_embedding: bool = option(False, flag, "Also split the embedding over the ranks.")
    embedding_sharding_dim: int = option("0", whole, "Embedding split: 0 rows, 1 columns.", "N")
    allow_overflow: bool = option(False, flag, "Let values overflow to Inf in float16.")
