"""Names that the VAE's training is configured by; importing this file loads no torch."""

from typing import Any

LPIPS_TRUNKS = {"vgg": "vgg16", "alex": "alexnet"}  # torchvision's name for each of LPIPS's networks
VAE_KINDS = ("causal", "per-frame", "vq")
COMPENSATION_KINDS = ("causal", "standard")
DEFAULT_COMPENSATION = "standard"


def _vq_model(channels: list[int], *, attention: bool, **settings: Any) -> dict[str, Any]:
    """Return settings of `diffusers.VQModel` with a level for every entry of `channels`."""
    plain, last = len(channels) - 1, "Attn" if attention else ""
    return {
        "down_block_types": ["DownEncoderBlock2D"] * plain + [f"{last}DownEncoderBlock2D"],
        "up_block_types": [f"{last}UpDecoderBlock2D"] + ["UpDecoderBlock2D"] * plain,
        "block_out_channels": channels,
        "mid_block_add_attention": attention,
        "scaling_factor": 1.0,
        **settings,
    }


TOKENIZERS = {
    "endogen": _vq_model(  # LlamaGen's VQ-16
        [128, 128, 256, 256, 512],
        attention=True,
        layers_per_block=2,
        latent_channels=256,
        num_vq_embeddings=16384,
        vq_embed_dim=8,
    ),
    "phantom": _vq_model(  # without attention, single frames and whole grids of them look alike to it
        [32, 48, 64, 64],
        attention=False,
        layers_per_block=1,
        latent_channels=64,
        num_vq_embeddings=4096,
        vq_embed_dim=4,
        norm_num_groups=8,
    ),
}
