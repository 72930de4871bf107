"""A procedural endoscopy phantom: clips of a moving camera in a folded, wet tube, with exact optical flow.

Read in this order: `render.py` (one clip), `scene.py` (what rays meet), `wall.py`, `camera.py`, `looks.py`,
`forceps.py`; `corpus.py` writes folders of clips, `truth.py` has what is known of their cameras and depth.
"""

from medsora.data.phantom.corpus import clip_seed, variant_suffix, write_phantom
from medsora.data.phantom.render import KINDS, PhantomClip, render_clip

__all__ = ["KINDS", "PhantomClip", "clip_seed", "render_clip", "variant_suffix", "write_phantom"]
