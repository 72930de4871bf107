"""Valid shapes of clips for the causal VAE: 1, 8k or 8k+1 frames, sides divisible by 16.

For anything else diffusers silently returns another frame count than it was given (5 frames come back as
8), so it is refused here, with the sizes that would do.
"""

from __future__ import annotations

FRAMES_PER_CHUNK = 8  # the base encodes 8 frames at a time, regardless of its config
LATENTS_PER_CHUNK = 2
FRAMES_PER_LATENT = FRAMES_PER_CHUNK // LATENTS_PER_CHUNK
PIXELS_PER_LATENT = 8  # along each side
SIDE_MULTIPLE = 2 * PIXELS_PER_LATENT  # the denoiser's patches divide by another 2


def frames_to_latents(frames: int) -> int:
    """n for F frames: 1 -> 1, 8k -> 2k, 8k+1 -> 2k+1. Raises `ValueError` for other F."""
    _check_frames(frames)
    return frames // FRAMES_PER_CHUNK * LATENTS_PER_CHUNK + frames % FRAMES_PER_CHUNK


def _check_frames(frames: int) -> None:
    """Raise `ValueError`, naming the next valid counts, unless `frames` is 1, 8k or 8k+1."""
    if frames > 0 and (frames % FRAMES_PER_CHUNK == 0 or frames % FRAMES_PER_CHUNK == 1):
        return
    below = frames // FRAMES_PER_CHUNK * FRAMES_PER_CHUNK + 1
    above = below - 1 + FRAMES_PER_CHUNK
    nearest = f"{below} and {above}" if frames > 0 else "1 and 8"
    raise ValueError(
        f"{frames} frames: the causal VAE returns 1, 8k or 8k+1 only; the next valid counts are {nearest}"
    )


def check_video_shape(frames: int, height: int, width: int) -> None:
    """Raise `ValueError`, naming the next valid sizes, unless the clip comes back in its own shape."""
    _check_frames(frames)
    check_sides(height, width)


def check_sides(height: int, width: int) -> None:
    """Raise `ValueError`, naming the next valid sizes, unless patches of 2 latents divide both sides."""
    for name, side in (("height", height), ("width", width)):
        if side <= 0 or side % SIDE_MULTIPLE:
            below = side // SIDE_MULTIPLE * SIDE_MULTIPLE
            nearest = (
                f"sizes are {below} and {below + SIDE_MULTIPLE}" if below > 0 else f"size is {SIDE_MULTIPLE}"
            )
            raise ValueError(
                f"{name} {side}: sides must be divisible by {SIDE_MULTIPLE}; the next valid {nearest}"
            )
