"""A training step against the public wiring, and with caches against without: `python -m benchmarks.train`.

Forward and backward of the denoiser take turns as in `benchmarks.sample`, six latents on both sides. Then the
whole of stage 2's step as a config describes it (phantom.yaml unless another is named): latents and prior
features from the disk against the VAE, the optical flow and DINO in every step.
"""

from __future__ import annotations

import dataclasses
import tempfile
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.kernels import kept_bytes
from benchmarks.support.measure import (
    device_name,
    keep,
    median_ms,
    peak_mib,
    ratio,
    take_turns,
    warm_ups,
)
from benchmarks.support.reference_wiring import ReferenceWiring
from benchmarks.support.wirings import (
    CLIP,
    IMAGES,
    Wirings,
    build,
    check_same_numbers,
    latents,
    products_by,
    wiring_parser,
)
from medsora import MedSora
from medsora.runtime.malloc import keep_freed_memory

PHANTOM = Path(__file__).parents[1] / "configs" / "phantom.yaml"
PRODUCTS = {False: "ours, PyTorch's products", True: "ours, oneDNN's products"}  # on a CPU


def main() -> None:
    """Measure, print and record by the command line's options."""
    batches, rounds = ((1, 16), 10) if torch.cuda.is_available() else ((1,), 5)
    parser = wiring_parser("train", __doc__, batches, rounds)
    parser.add_argument("--parts", nargs="+", default=("wiring", "caches"), choices=("wiring", "caches"))
    help_of_config = "of the caches' part (default: phantom.yaml)"
    parser.add_argument("--config", type=Path, default=PHANTOM, help=help_of_config)
    options = parser.parse_args()
    device = torch.device(options.device)
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    keep_freed_memory()
    print(f"{device_name(device)}, {dtype}")
    if "wiring" in options.parts:
        wirings = build(options.preset, device, torch.float32)
        error = check_same_numbers(wirings, device, torch.float32)
        print(
            f"the reference scans by {wirings.scan}; both answer alike, to {error:.0e} of the largest value"
        )
        if options.compile:
            wirings.compile()
        for batch in options.batches:
            values = measure(wirings, batch, device, dtype, options.rounds)
            if not options.dry:
                chosen = {"preset": options.preset, "compiled": options.compile}
                keep("train", device, chosen | values, options.results)
    if "caches" in options.parts:
        values = _measure_caches(options.config, options.rounds, device)
        if not options.dry:
            keep("caches", device, values, options.results)


def measure(
    wirings: Wirings, batch: int, device: torch.device, dtype: torch.dtype, rounds: int
) -> dict[str, object]:
    """Forward and backward of both wirings: times, and what autograd keeps in between."""
    z, t = latents(batch, CLIP + IMAGES, device, torch.float32)
    models = {"reference": wirings.reference, "ours": wirings.same}
    for model in models.values():
        model.train()
    works = {name: partial(forward_backward, model, z, t, dtype) for name, model in models.items()}
    if device.type == "cpu":
        for onednn, name in PRODUCTS.items():
            works[name] = products_by(onednn)(partial(forward_backward, wirings.same, z, t, dtype))
    times = take_turns(works, rounds, device)
    plain_on_cpu = {"reference": wirings.plain.train()} if device.type == "cpu" else {}
    values: dict[str, object] = {
        "batch": batch,
        "dtype": str(dtype),
        "scan": wirings.scan,
        "rounds": rounds,
        "ms": {name: round(median_ms(seconds), 3) for name, seconds in times.items()},
        "forward and backward": ratio(times["reference"], times["ours"]),
        "kept for the backward, MiB": {
            name: round(kept_bytes(model.parameters(), partial(loss_of, model, z, t, dtype)) / 2**20, 1)
            for name, model in (models | plain_on_cpu).items()
        },
    }
    if device.type == "cpu":
        plain, by_onednn = (times[PRODUCTS[onednn]] for onednn in (False, True))
        values["changes"] = {
            "wiring and gradients": ratio(times["reference"], plain),
            "products by oneDNN": ratio(plain, by_onednn),
        }
    else:
        values["peak MiB"] = {name: peak_mib(work) for name, work in works.items()}
    kept = values["kept for the backward, MiB"]
    print(f"\nbatch {batch}, forward and backward: {values['forward and backward']}")
    for name, milliseconds in values["ms"].items():
        print(f"  {name:26} {milliseconds:10.3f} ms")
    for name, change in values.get("changes", {}).items():
        print(f"  {name:26} {change}")
    share = kept["ours"] / kept["reference"]
    print(f"  kept for the backward: {kept['ours']} MiB, {share:.2f} of the reference's")
    if "peak MiB" in values:
        print(f"  peak MiB: {values['peak MiB']}")
    return values


def loss_of(model: MedSora | ReferenceWiring, z: Tensor, t: Tensor, dtype: torch.dtype) -> Tensor:
    """A loss that reaches every weight, under autocast where `dtype` is not float32."""
    images = {"num_images": IMAGES} if isinstance(model, MedSora) else {}
    with torch.autocast(z.device.type, dtype, enabled=dtype != torch.float32):
        out = model(z, t, **images)
    return out.eps.float().square().mean() + out.variance.float().square().mean()


def forward_backward(model: nn.Module, z: Tensor, t: Tensor, dtype: torch.dtype) -> None:
    """One pass each way; the gradients are dropped."""
    loss_of(model, z, t, dtype).backward()
    model.zero_grad(set_to_none=True)


def _measure_caches(path: Path, rounds: int, device: torch.device) -> dict[str, object]:
    """Stage 2's step with filled caches and without any, on the same samples."""
    from benchmarks.support.stage2_step import Stage2Step  # needs all that training needs
    from medsora.config.load import load_config

    config = load_config(path, [])
    with tempfile.TemporaryDirectory() as folder:
        steps = {}
        for name, kept in (("off", "off"), ("on", "disk")):
            cache = dataclasses.replace(
                config.cache, latents=kept, prior=kept, dir=str(Path(folder, "cache"))
            )
            run = dataclasses.replace(config.run, dir=str(Path(folder, name)))
            of_cache = dataclasses.replace(config, cache=cache, run=run)
            steps[name] = Stage2Step(of_cache, steps=rounds + warm_ups(device))
        times = take_turns(steps, rounds, device)
    values: dict[str, object] = {
        "config": Path(path).name,
        "batch": steps["on"].batch,
        "rounds": rounds,
        "ms": {f"caches {name}": round(median_ms(seconds), 2) for name, seconds in times.items()},
        "caches on against off": ratio(times["off"], times["on"]),
    }
    print(f"\n{values['config']}, a step of stage 2 with batch {values['batch']}")
    for name, milliseconds in values["ms"].items():
        print(f"  {name:11} {milliseconds:9.2f} ms")
    print(f"  caches on against off: {values['caches on against off']}")
    return values


if __name__ == "__main__":
    main()
