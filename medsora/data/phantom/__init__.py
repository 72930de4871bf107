"""A procedural endoscopy phantom: clips of a moving camera in a folded, wet tube, with exact optical flow.

Read in this order: `render.py` (one clip), `scene.py` (what rays meet), `wall.py`, `camera.py`, `forceps.py`;
`corpus.py` writes folders of clips.
"""

from medsora.data.phantom.corpus import clip_seed, polyp_suffix, write_phantom
from medsora.data.phantom.render import KINDS, PhantomClip, render_clip

__all__ = ["KINDS", "PhantomClip", "clip_seed", "polyp_suffix", "render_clip", "write_phantom"]
