"""Names that the VAE's training is configured by; importing this file loads no torch."""

LPIPS_TRUNKS = {"vgg": "vgg16", "alex": "alexnet"}  # torchvision's name for each of LPIPS's networks
VAE_KINDS = ("causal", "per-frame", "vq")
COMPENSATION_KINDS = ("causal", "standard")
DEFAULT_COMPENSATION = "standard"
