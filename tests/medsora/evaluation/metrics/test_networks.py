"""medsora.evaluation.metrics.i3d, medsora.evaluation.metrics.inception, medsora.evaluation.metrics.videomae,
medsora.evaluation.metrics.frame_consistency, medsora.evaluation.metrics.weight_files,
medsora.evaluation.metrics.registry: the published networks, with random weights in local files, through
the true loading code.
"""

from __future__ import annotations

from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from huggingface_hub import HfApi
from torch import nn
from torch_fidelity import feature_extractor_inceptionv3 as inceptionv3
from torch_fidelity.metric_isc import isc_features_to_metric
from torchvision.models.optical_flow import raft_large, raft_small
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from medsora.errors import BadInput
from medsora.evaluation.features.feature_store import Features
from medsora.evaluation.metrics.frame_consistency import ClipExtractor, FrameConsistencyMeasure
from medsora.evaluation.metrics.i3d import I3D, I3DExtractor, load_i3d, max_pool_same, pad_same
from medsora.evaluation.metrics.inception import (
    CLASSES,
    FID_COLUMNS,
    InceptionExtractor,
    InceptionScoreMeasure,
    inception_score,
)
from medsora.evaluation.metrics.measure import FrechetMeasure
from medsora.evaluation.metrics.registry import build_measures, parse_metrics
from medsora.evaluation.metrics.videomae import VideoMAE, VideoMAEExtractor, translated
from medsora.evaluation.metrics.weight_files import PUBLISHED, cached_file, parse_weights, weight_file
from medsora.saved.hub import HTTP_ERRORS

TINY_MAE = {
    "image_size": 28,
    "patch_size": 14,
    "num_frames": 4,
    "tubelet_size": 2,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 40,
}


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)


# I3D


@pytest.mark.parametrize(
    ("size", "kernel", "stride"), [(9, 3, 2), (16, 7, 2), (8, 2, 2), (5, 3, 1), (7, 1, 1)]
)
def test_same_padding_has_tensorflows_sizes(size: int, kernel: int, stride: int) -> None:
    x = torch.ones(1, 1, size, size, size)
    padded = pad_same(x, (kernel,) * 3, (stride,) * 3)
    assert (padded.shape[2] - kernel) // stride + 1 == -(-size // stride)
    extra = padded.shape[2] - size
    line = padded[0, 0, :, extra, extra]
    assert line[: extra // 2].sum() == 0  # the odd zero comes last
    assert extra == 0 or line[extra // 2] == 1
    assert max_pool_same(x, (kernel,) * 3, (stride,) * 3).shape[2] == -(-size // stride)


def test_i3d_is_the_published_network(tmp_path: Path) -> None:
    """The port's tensors by name and shape; a file without the batch counters, which older PyTorch wrote."""
    state = I3D().state_dict()
    assert state["Conv3d_1a_7x7.conv3d.weight"].shape == (64, 3, 7, 7, 7)
    assert state["Mixed_5c.b2b.bn.running_var"].shape == (128,)
    assert state["logits.conv3d.weight"].shape == (400, 1024, 1, 1, 1)
    assert sum(p.numel() for p in I3D().parameters()) == 12_697_264
    old = {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}
    torch.save({"state_dict": old}, tmp_path / "i3d.pt")
    network = load_i3d(tmp_path / "i3d.pt")
    assert all(torch.equal(network.state_dict()[name], old[name]) for name in old)
    assert not network.training
    del old["Mixed_4d.b1b.conv3d.weight"]
    torch.save(old, tmp_path / "torn.pt")
    with pytest.raises(ValueError, match=r"Mixed_4d.b1b.conv3d.weight is missing"):
        load_i3d(tmp_path / "torn.pt")


def test_i3d_extractor(tmp_path: Path) -> None:
    torch.save(I3D().state_dict(), tmp_path / "i3d.pt")
    extractor = I3DExtractor({"fvd": tmp_path / "i3d.pt"})
    features = extractor(noise(1, 9, 32, 32))
    assert features.shape == (1, extractor.rows(9), 400)
    assert np.isfinite(features).all()
    assert features.std() > 0
    assert len(extractor.identity["weights_sha256"]) == 64
    with pytest.raises(BadInput, match="at least 9 frames, not 8"):
        extractor.rows(8)


# VideoMAE


def published_names(network: VideoMAE) -> dict[str, torch.Tensor]:
    """The state of `network` as the published checkpoint names it."""
    state, found = network.state_dict(), {}
    for i in range(TINY_MAE["num_hidden_layers"]):
        layer = f"backbone.encoder.layer.{i}."
        attention = f"{layer}attention.attention."
        qkv = [state.pop(f"{attention}{part}.weight") for part in ("query", "key", "value")]
        found[f"blocks.{i}.attn.qkv.weight"] = torch.cat(qkv)
        found[f"blocks.{i}.attn.q_bias"] = state.pop(f"{attention}query.bias")
        found[f"blocks.{i}.attn.v_bias"] = state.pop(f"{attention}value.bias")
        for ours, theirs in {
            "attention.output.dense": "attn.proj",
            "layernorm_before": "norm1",
            "layernorm_after": "norm2",
            "intermediate.dense": "mlp.fc1",
            "output.dense": "mlp.fc2",
        }.items():
            for kind in ("weight", "bias"):
                found[f"blocks.{i}.{theirs}.{kind}"] = state.pop(f"{layer}{ours}.{kind}")
    for kind in ("weight", "bias"):
        found[f"patch_embed.proj.{kind}"] = state.pop(
            f"backbone.embeddings.patch_embeddings.projection.{kind}"
        )
    return found | state  # fc_norm and head keep their names


def test_videomae_translates_every_published_name(tmp_path: Path) -> None:
    network = VideoMAE(**TINY_MAE).eval()
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    published = published_names(network)
    assert {"fc_norm.weight", "head.bias", "blocks.1.attn.v_bias"} < published.keys()
    back = translated(published)
    assert all(torch.equal(back[name], tensor) for name, tensor in network.state_dict().items())
    torch.save({"module": published}, tmp_path / "mae.pth")
    extractor = VideoMAEExtractor({"cd-fvd": tmp_path / "mae.pth"}, config=TINY_MAE)
    clips = noise(2, 4, 28, 28)
    with torch.no_grad():
        expected = network(torch.from_numpy(clips).permute(0, 1, 4, 2, 3) / 255)
    assert np.allclose(extractor(clips)[:, 0], expected.numpy(), atol=1e-5)
    with pytest.raises(BadInput, match="clips of 4 frames, not 16"):
        extractor.rows(16)


# InceptionV3


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """torch-fidelity's structure with random weights: its class cannot be built without a download."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inceptionv3, "load_state_dict_from_url", lambda *a, **k: {})
        patch.setattr(inceptionv3.FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
        network = inceptionv3.FeatureExtractorInceptionV3("random", ["2048"])
    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    torch.save(network.state_dict(), path)
    return path


def test_fid_and_is_through_the_true_loading_code(inception_file: Path) -> None:
    measures = build_measures(("fid", "is"), {"inception": inception_file}, "cpu")
    extractor = measures["fid"].extractor
    assert measures["is"].extractor is extractor
    clips = noise(2, 2, 40, 40)
    values = extractor(clips)
    assert values.shape == (2, extractor.rows(2), 2048 + CLASSES)
    network = inceptionv3.FeatureExtractorInceptionV3("own", ["2048"], str(inception_file))
    (pooled,) = network(torch.from_numpy(clips[1]).permute(0, 3, 1, 2).contiguous())
    assert np.allclose(values[1, :, :2048], pooled.numpy(), atol=1e-4)
    features = Features.of(values)
    assert measures["fid"].compare(features, features)["fid"] == pytest.approx(0, abs=1e-6)
    assert measures["is"].describe(features)["inception_score"] >= 1


def test_inception_weights_that_do_not_fit(tmp_path: Path) -> None:
    torch.save({"fc.weight": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="does not fit torch-fidelity's InceptionV3"):
        InceptionExtractor({"inception": tmp_path / "other.pth"})


def test_inception_score_is_its_definition_and_torch_fidelitys() -> None:
    logits = torch.randn(60, 7) * 2
    p = logits.double().softmax(1)
    by_definition = (p * (p.log() - p.mean(0).log())).sum(1).mean().exp()
    features = Features.of(logits.numpy()[:, None])
    assert inception_score(features) == pytest.approx(float(by_definition), rel=1e-6)
    theirs = isc_features_to_metric(logits, splits=1)["inception_score_mean"]
    assert inception_score(features) == pytest.approx(theirs, rel=1e-6)
    doubled = features.reweighted(np.r_[np.full(10, 2.0), np.zeros(50)])
    assert inception_score(doubled) == pytest.approx(inception_score(Features.of(logits.numpy()[:10, None])))


def test_inception_score_of_ten_consecutive_parts() -> None:
    logits = torch.randn(40, 7)
    wide = np.zeros((40, 1, 2048 + CLASSES), np.float32)
    wide[..., 2048:] = -30
    wide[:, 0, 2048:2055] = logits
    measure = InceptionScoreMeasure(None)
    measure.published = True
    found = measure.describe(Features.of(wide))["inception_score"]
    parts = [inception_score(Features.of(wide[i : i + 4]), slice(2048, None)) for i in range(0, 40, 4)]
    assert found == pytest.approx(np.mean(parts))


def test_videos_side_by_side_do_not_lower_the_inception_score() -> None:
    """Ten videos of ten clips each, every video of a class of its own: a tenth in order is one video."""
    wide = np.zeros((100, 1, 2048 + CLASSES), np.float32)
    wide[..., 2048:] = -30
    wide[np.arange(100), 0, 2048 + np.arange(100) // 10] = 30
    measure = InceptionScoreMeasure(None)
    assert measure.describe(Features.of(wide))["inception_score"] > 4
    assert measure.describe(Features.of(wide)) == measure.describe(Features.of(wide))
    measure.published = True
    assert measure.describe(Features.of(wide))["inception_score"] == pytest.approx(1)


def test_fid_takes_the_pooled_columns() -> None:
    values = np.random.default_rng(0).normal(size=(6, 2, 2048 + CLASSES)).astype(np.float32)
    other = values.copy()
    other[..., 2048:] += 5
    measure = FrechetMeasure("fid", "FID", type("Any", (), {"width": 2048 + CLASSES})(), FID_COLUMNS)
    measure.columns = slice(2040, 2048)  # the same computation, with a covariance that is quick to take apart
    assert measure.compare(Features.of(values), Features.of(other))["fid"] == pytest.approx(0, abs=1e-6)


# CLIP


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=32,
        patch_size=16,
        projection_dim=16,
    )
    folder = tmp_path_factory.mktemp("weights") / "clip"
    CLIPVisionModelWithProjection(config).save_pretrained(folder)
    return folder


def test_frame_consistency_of_constant_video_is_one(clip_folder: Path) -> None:
    extractor = ClipExtractor({"clip": clip_folder})
    still = np.repeat(noise(2, 1, 24, 24), 5, axis=1)
    measure = FrameConsistencyMeasure(extractor)
    assert measure.describe(Features.of(extractor(still)))["frame_consistency"] == pytest.approx(1, abs=1e-6)
    assert measure.describe(Features.of(extractor(noise(2, 5, 24, 24))))["frame_consistency"] < 0.999


def test_frame_consistency_is_the_cosine_of_neighbours(clip_folder: Path) -> None:
    extractor = ClipExtractor({"clip": clip_folder})
    clip = noise(1, 3, 32, 32)
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
    pixels = (torch.from_numpy(clip[0]).permute(0, 3, 1, 2) / 255 - mean) / std
    with torch.no_grad():
        embedded = extractor.network(pixel_values=pixels).image_embeds
    expected = F.cosine_similarity(embedded[1:], embedded[:-1]).mean()
    assert float(extractor(clip)[0, 0, 0]) == pytest.approx(float(expected), abs=1e-5)


def test_clip_with_a_hole_is_refused(clip_folder: Path, tmp_path: Path) -> None:
    network = CLIPVisionModelWithProjection.from_pretrained(clip_folder)
    state = network.state_dict()
    del state["visual_projection.weight"]
    network.save_pretrained(tmp_path / "torn", state_dict=state)
    with pytest.raises(ValueError, match="visual_projection"):
        ClipExtractor({"clip": tmp_path / "torn"})
    (tmp_path / "torn" / "model.safetensors").unlink()
    with pytest.raises(OSError, match=r"torn cannot be loaded as a CLIP model .*correct --weights clip"):
        ClipExtractor({"clip": tmp_path / "torn"})
    torch.save({"pickled": pytest.raises}, tmp_path / "torn" / "pytorch_model.bin")  # a function: no tensor
    with pytest.raises(OSError, match=r"torn cannot be loaded as a CLIP model"):
        ClipExtractor({"clip": tmp_path / "torn"})
    with pytest.raises(FileNotFoundError, match="no folder of a CLIP model"):
        ClipExtractor({"clip": tmp_path / "nowhere"})


# Optical flow


def test_raft_is_taken_where_its_weights_are_at_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given files come first, then PyTorch's cache, then DIS; nothing is downloaded."""
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda *a, **k: pytest.fail("downloaded"))

    def flow(name: str = "auto", **weights: Path) -> str:
        return build_measures(("motion",), weights, "cpu", name)["motion"].extractor.identity["flow"]

    assert flow().startswith("OpenCV DIS")
    torch.save(raft_small(weights=None).state_dict(), tmp_path / "small.pth")
    assert flow(raft_small=tmp_path / "small.pth") == "raft_small"
    cached = cached_file("raft_large")
    assert cached.is_relative_to(tmp_path)
    cached.parent.mkdir(parents=True)
    torch.save(raft_large(weights=None).state_dict(), cached)
    assert flow() == "raft_large"
    assert flow(raft_small=tmp_path / "small.pth") == "raft_small"
    assert flow("dis", raft_small=tmp_path / "small.pth").startswith("OpenCV DIS")


def test_without_a_network_clip_is_not_tried_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub's client tries to download for half a minute; one question comes first."""

    def unreachable(*args: object, **options: object) -> None:
        raise HTTP_ERRORS[0]("no network")

    local_only = []

    def missing(source: str, **options: object) -> None:
        local_only.append(options.get("local_files_only", False))
        raise OSError("not here")

    monkeypatch.setattr(HfApi, "model_info", unreachable)
    monkeypatch.setattr(CLIPVisionModelWithProjection, "from_pretrained", missing)
    with pytest.raises(
        OSError, match=r"no network.*--weights clip=FOLDER, or start this once where there is"
    ):
        ClipExtractor({})
    assert local_only == [True]


# Weight files


@pytest.mark.parametrize("name", ["fvd", "cd-fvd", "inception", "raft_small"])
def test_offline_names_both_ways_out(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*args: object, **options: object) -> None:
        raise URLError("no network")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(OSError, match=rf"--weights {name}=FILE, or start this once") as caught:
        weight_file(name, {})
    assert PUBLISHED[name] in str(caught.value)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_torchscript_is_not_executed(tmp_path: Path) -> None:
    torch.jit.script(nn.Linear(2, 2)).save(str(tmp_path / "i3d_torchscript.pt"))
    with pytest.raises(ValueError, match="TorchScript archive: foreign code"):
        weight_file("fvd", {"fvd": tmp_path / "i3d_torchscript.pt"})
    with pytest.raises(FileNotFoundError, match=r"nothing\.pt does not exist"):
        weight_file("fvd", {"fvd": tmp_path / "nothing.pt"})


def test_names_are_checked() -> None:
    assert parse_weights(["fvd=a.pt", "clip=b"]) == {"fvd": "a.pt", "clip": "b"}
    with pytest.raises(BadInput, match="NAME=PATH"):
        parse_weights(["i3d=a.pt"])
    assert parse_metrics(" FVD, motion,fvd") == ("fvd", "motion")
    with pytest.raises(BadInput, match="'fdv' is unknown; choose from fvd"):
        parse_metrics("fdv")
