"""Fields that no case of the CPU lane varies, and why; `golden coverage` shows the reasons."""

from __future__ import annotations

UNVARIED = {
    "attention_dropout": "no attention kernel drops out: `vpmoe pretrain` refuses all but 0",
    "ckpt_format": "vpMoE saves layers apart, and converts them, in torch_dist alone",
    "normalization": "vpMoE has RMSNorm: `vpmoe pretrain` refuses another",
    "synth_kd_data": "each case builds its dataset and passes the folder, whose name is not fixed",
    "untie_embeddings_and_output_weights": "`vpmoe pretrain` refuses tied embeddings",
}
