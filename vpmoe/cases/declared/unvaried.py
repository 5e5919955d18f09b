"""Fields that no case of the CPU lane varies, and why; `golden coverage` shows the reasons."""

from __future__ import annotations

_LOCKED = "the vocabulary is o200k Harmony's: `vpmoe pretrain` refuses another"

UNVARIED = {
    "attention_dropout": "no attention kernel drops out: `vpmoe pretrain` refuses all but 0",
    "attention_kernel": "a CPU has the eager kernel alone; `kernels` on the lane h200 has all",
    "ckpt_format": "vpMoE saves layers apart, and converts them, in torch_dist alone",
    "legacy_tokenizer": "its vocabulary would be a file of somebody else's, and its data has none "
    "of vpMoE's documents",
    "normalization": "vpMoE has RMSNorm: `vpmoe pretrain` refuses another",
    "padded_vocab_size": _LOCKED,
    "synth_kd_data": "each case builds its dataset and passes the folder, whose name is not fixed",
    "tokenizer_type": _LOCKED,
    "untie_embeddings_and_output_weights": "`vpmoe pretrain` refuses tied embeddings",
}
