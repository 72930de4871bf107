"""LPIPS (Zhang et al. 2018) on video frames; its linear heads come with the package, its trunk does not."""

from __future__ import annotations

from pathlib import Path
from pickle import UnpicklingError

import lpips
import torch
import torchvision
from torch import Tensor, nn

from medsora.vae.choices import LPIPS_TRUNKS


class PerceptualLoss(nn.Module):
    """Frozen LPIPS; `trunk` is a local file of torchvision's weights, None lets torchvision download them."""

    def __init__(
        self, net: str = "vgg", *, trunk: str | Path | None = None, random_trunk: bool = False
    ) -> None:
        """Build the network `net`, "vgg" or "alex"; `random_trunk` is for tests, its distances mean nothing.

        Raises `ValueError` for another name or a file that does not fit, `OSError` without a trunk.
        """
        super().__init__()
        if net not in LPIPS_TRUNKS:
            raise ValueError(f"the LPIPS network is '{net}' but must be one of {', '.join(LPIPS_TRUNKS)}.")
        self.model = lpips.LPIPS(net=net, pnet_rand=True, verbose=False)
        if not random_trunk:
            self._fill_trunk(_trunk_state(net, trunk), trunk or LPIPS_TRUNKS[net])
        self.requires_grad_(False).eval()

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Return the mean distance of two videos (B, F, 3, H, W) in [-1, 1] over frames: a float32 scalar."""
        with torch.autocast(prediction.device.type, enabled=False):
            return self.model(prediction.float().flatten(0, 1), target.float().flatten(0, 1)).mean()

    def train(self, mode: bool = True) -> PerceptualLoss:
        """Stay in evaluation mode: the heads hold dropout."""
        return super().train(False)

    def _fill_trunk(self, state: dict[str, Tensor], source: str | Path) -> None:
        # lpips cuts torchvision's `features` into slices that keep the layers' numbers as names
        own = self.model.net.state_dict()
        for name in own:
            wanted = "features." + name.split(".", 1)[1]
            if wanted not in state or state[wanted].shape != own[name].shape:
                raise ValueError(
                    f"{source} does not hold torchvision's weights for LPIPS: {wanted} is missing or differs."
                )
            own[name] = state[wanted]
        self.model.net.load_state_dict(own, strict=True)


def _trunk_state(net: str, trunk: str | Path | None) -> dict[str, Tensor]:
    weights = torchvision.models.get_model_weights(LPIPS_TRUNKS[net])["IMAGENET1K_V1"]
    if trunk is None:
        try:
            return weights.get_state_dict(
                progress=False, check_hash=True, map_location="cpu", weights_only=True
            )
        except (OSError, RuntimeError) as error:  # no network; a download whose hash is wrong
            raise OSError(
                f"the weights of {LPIPS_TRUNKS[net]} for LPIPS cannot be downloaded from {weights.url} "
                f"({error}); bring that file and set train_vae.lpips_trunk to its path, "
                "or set train_vae.lpips=0."
            ) from error
        except UnpicklingError as error:  # a file that lay in the cache already is not hashed
            raise ValueError(
                f"{torch.hub.get_dir()}/checkpoints holds something else than tensors as the file of "
                f"{weights.url}; delete that file."
            ) from error
    if not Path(trunk).is_file():
        raise FileNotFoundError(
            f"there is no file {trunk}; set train_vae.lpips_trunk to the file of {weights.url}, or to null, "
            "to have it downloaded."
        )
    try:
        state = torch.load(trunk, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes make unpicklers raise anything
        raise ValueError(f"{trunk} is not a complete weights file; fetch {weights.url} again.") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{trunk} holds something else than named tensors; fetch {weights.url} again.")
    return state
