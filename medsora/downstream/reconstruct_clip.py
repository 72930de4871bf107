"""Structure from motion of one clip by COLMAP: `python -P reconstruct_clip.py FOLDER THREADS`.

A process of its own, so that a clip that takes too much time or memory, or crashes COLMAP, costs nothing
else; it loads nothing of medsora. The folder holds `job.json` (a `Job`), `images/0000.png` ... and
`mask.png`, white where features may be. It gets `geometry.npz` (a `Geometry`) if two frames or more are
registered, and if the job requests it, `export` (their images, sparse/0) and its geometry `export.npz`.
"""

from __future__ import annotations

import json
import resource
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

CAMERAS = {"simple-pinhole": "SIMPLE_PINHOLE", "simple-radial": "SIMPLE_RADIAL"}
START_FOCAL = 0.6  # initial focal length, as a share of the shorter side (80 degrees)
MIN_TRIANGULATION_ANGLE_DEG = 2.0  # minimum angle of the first pair; short clips do not reach COLMAP's 16
MIN_FRAMES = 2


@dataclass(frozen=True)
class Job:
    """Settings of COLMAP, and the limits of the process."""

    camera: str  # one of `CAMERAS`; one camera for all frames, principal point in the middle
    focal: float | None  # in units of the picture's shorter side, kept as it is; None estimates it
    features: int  # SIFT features per frame, at most
    memory_bytes: int
    cpu_seconds: int
    export: bool  # keep what Gaussian-splatting tools read

    def write(self, path: Path) -> None:
        """Write the job as JSON."""
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")


@dataclass(frozen=True)
class Geometry:
    """A reconstruction: cameras, and every observation of a point in a frame.

    World and camera axes are COLMAP's (x right, y down, z forward); the scale is arbitrary.
    """

    frames: np.ndarray  # (n,) numbers of the registered frames, rising
    rotations: np.ndarray  # (n, 3, 3), camera to world
    centres: np.ndarray  # (n, 3) of the cameras
    camera: np.ndarray  # focal length in pixels, principal point x, y and, with "simple-radial", k
    size: np.ndarray  # height and width in pixels
    points: np.ndarray  # (p, 3) in the world
    errors: np.ndarray  # (p,) mean reprojection error of each, in pixels
    seen_in: np.ndarray  # (m,) rows of `frames`, one for each observation
    seen: np.ndarray  # (m,) rows of `points`
    pixels: np.ndarray  # (m, 2) where, x before y; COLMAP's: the first pixel's centre is at 0.5

    @classmethod
    def read(cls, path: Path) -> Geometry:
        """Read the arrays of an .npz file."""
        with np.load(path, allow_pickle=False) as file:
            return cls(**{name: file[name] for name in cls.__dataclass_fields__})

    @property
    def depths(self) -> np.ndarray:
        """Distance of each observation's point along its camera's axis, (m,)."""
        forward = self.rotations[self.seen_in, :, 2]
        return ((self.points[self.seen] - self.centres[self.seen_in]) * forward).sum(1)


def reconstruct(folder: Path, job: Job, threads: int) -> None:
    """Register the frames of `folder` with one another; see the module. Needs pycolmap.

    If there are several models, the one with the most frames is kept.
    """
    import pycolmap

    pycolmap.logging.minloglevel = 2  # errors alone
    pycolmap.set_random_seed(0)
    database = folder / "database.db"
    _find_features(pycolmap, folder, database, job, threads)
    matching = pycolmap.FeatureMatchingOptions()
    matching.num_threads, matching.use_gpu, matching.sift.cpu_brute_force_matcher = threads, False, True
    verification = pycolmap.TwoViewGeometryOptions()
    verification.ransac.random_seed = 0
    pycolmap.match_exhaustive(
        database, matching_options=matching, verification_options=verification, device=pycolmap.Device.cpu
    )
    options = pycolmap.IncrementalPipelineOptions()
    options.num_threads, options.random_seed, options.min_model_size = 1, 0, MIN_FRAMES
    options.ba_refine_focal_length = job.focal is None
    options.mapper.abs_pose_refine_focal_length = job.focal is None
    options.mapper.init_min_tri_angle = MIN_TRIANGULATION_ANGLE_DEG
    options.mapper.init_max_forward_motion = 1.0  # an endoscope advances
    (folder / "models").mkdir()
    models = pycolmap.incremental_mapping(database, folder / "images", folder / "models", options)
    if models:
        best = max(models.values(), key=lambda model: (model.num_reg_images(), model.num_points3D()))
        np.savez(folder / "geometry.npz", **vars(_geometry_of(best)))
        if job.export:
            _export(pycolmap, folder, best, job)


def _export(pycolmap: Any, folder: Path, model: Any, job: Job) -> None:
    """Write `export/` and its geometry, without distortion: splatting tools take pinhole cameras alone."""
    (folder / "export" / "sparse" / "0").mkdir(parents=True)
    (folder / "export" / "images").mkdir()
    images = folder / "images"
    if job.camera != "simple-pinhole":
        (folder / "distorted").mkdir()
        model.write(folder / "distorted")
        pycolmap.undistort_images(folder / "straight", folder / "distorted", images)
        model, images = pycolmap.Reconstruction(folder / "straight/sparse"), folder / "straight/images"
    model.write(folder / "export" / "sparse" / "0")
    for number in model.reg_image_ids():
        name = model.image(number).name
        (images / name).rename(folder / "export" / "images" / name)
    np.savez(folder / "export.npz", **vars(_geometry_of(model)))


def _find_features(pycolmap: Any, folder: Path, database: Path, job: Job, threads: int) -> None:
    import cv2

    height, width = cv2.imread(str(folder / "mask.png"), cv2.IMREAD_GRAYSCALE).shape
    reader = pycolmap.ImageReaderOptions()
    reader.camera_model, reader.camera_mask_path = CAMERAS[job.camera], folder / "mask.png"
    focal = min(height, width) * (START_FOCAL if job.focal is None else job.focal)
    distortion = [0.0] if job.camera == "simple-radial" else []
    reader.camera_params = ",".join(map(str, [focal, width / 2, height / 2, *distortion]))
    extraction = pycolmap.FeatureExtractionOptions()
    extraction.num_threads, extraction.use_gpu = threads, False
    extraction.sift.max_num_features, extraction.sift.peak_threshold = job.features, 0.002
    pycolmap.extract_features(
        database,
        folder / "images",
        camera_mode=pycolmap.CameraMode.SINGLE,
        reader_options=reader,
        extraction_options=extraction,
        device=pycolmap.Device.cpu,
    )


def _geometry_of(model: Any) -> Geometry:
    """Return poses, focal length and points of a pycolmap reconstruction."""
    images = sorted((model.image(number) for number in model.reg_image_ids()), key=lambda image: image.name)
    poses = [image.cam_from_world().inverse() for image in images]
    (camera,) = model.cameras.values()
    row = {number: k for k, number in enumerate(model.points3D)}
    seen = [
        (k, row[point.point3D_id], *point.xy)
        for k, image in enumerate(images)
        for point in image.points2D
        if point.has_point3D()
    ]
    seen = np.array(seen, np.float64).reshape(-1, 4)
    return Geometry(
        frames=np.array([int(Path(image.name).stem) for image in images]),
        rotations=np.stack([pose.rotation.matrix() for pose in poses]),
        centres=np.stack([pose.translation for pose in poses]),
        camera=np.asarray(camera.params),
        size=np.array([camera.height, camera.width]),
        points=np.array([point.xyz for point in model.points3D.values()]).reshape(-1, 3),
        errors=np.array([point.error for point in model.points3D.values()]),
        seen_in=seen[:, 0].astype(int),
        seen=seen[:, 1].astype(int),
        pixels=seen[:, 2:],
    )


def main(folder: Path, threads: int) -> None:
    """Do the job of `folder` within its limits."""
    job = Job(**json.loads((folder / "job.json").read_text(encoding="utf-8")))
    for kind, most in ((resource.RLIMIT_CPU, job.cpu_seconds), (resource.RLIMIT_DATA, job.memory_bytes)):
        _, hard = resource.getrlimit(kind)
        resource.setrlimit(kind, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))
    reconstruct(folder, job, threads)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
