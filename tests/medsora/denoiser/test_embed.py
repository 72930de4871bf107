"""Position and time embeddings."""

from __future__ import annotations

import torch

from medsora.denoiser.embed import PatchEmbedding, TimeEmbedding, position_table, sinusoids

CPU = torch.device("cpu")


def test_positions_of_all_tokens_differ_and_separate_rows_from_columns() -> None:
    table = position_table(3, 5, 32, CPU, torch.float32).view(3, 5, 32)
    assert len(table.view(15, 32).unique(dim=0)) == 15
    assert torch.equal(table[1, 0, :16], table[1, 4, :16])
    assert torch.equal(table[0, 3, 16:], table[2, 3, 16:])


def test_position_tables_are_cached_and_stay_out_of_the_state_dict() -> None:
    assert position_table(3, 5, 32, CPU, torch.float32) is position_table(3, 5, 32, CPU, torch.float32)
    assert list(PatchEmbedding(4, 32, 2).state_dict()) == ["projection.weight", "projection.bias"]


def test_tables_made_while_sampling_can_be_trained_with() -> None:
    patches = PatchEmbedding(4, 32, 2)
    z = torch.randn(1, 1, 4, 6, 14)
    with torch.inference_mode():
        patches(z)
    patches(z).square().sum().backward()
    assert patches.projection.weight.grad is not None


def test_patches_are_read_row_by_row() -> None:
    patches = PatchEmbedding(4, 32, 2).eval()
    z = torch.randn(2, 3, 4, 4, 6)
    tokens = patches(z)
    assert tokens.shape == (2, 3, 6, 32)
    corner = z[1, 2, :, 2:4, 4:6].flatten()
    projection = patches.projection
    expected = projection.weight.flatten(1) @ corner + projection.bias
    expected = expected + position_table(2, 3, 32, CPU, torch.float32)[5]
    torch.testing.assert_close(tokens[1, 2, 5], expected)


def test_neighbouring_timesteps_have_near_features_and_distant_ones_have_not() -> None:
    features = sinusoids(torch.tensor([10.0, 11.0, 900.0]), 256)
    assert features.shape == (3, 256)
    assert (features[0] - features[1]).norm() < (features[0] - features[2]).norm()


def test_time_keeps_the_shape_of_the_timesteps() -> None:
    time = TimeEmbedding(32)
    t = torch.randint(0, 1000, (2, 5))
    assert time(t).shape == (2, 5, 32)
    torch.testing.assert_close(time(t)[1, 3], time(t[1, 3]))


def test_autocast_does_not_round_the_tokens_that_branches_add_to() -> None:
    patches, z = PatchEmbedding(4, 32, 2), torch.randn(1, 1, 4, 4, 6)
    with torch.autocast("cpu", torch.bfloat16):
        assert patches(z).dtype == torch.float32
    assert patches.bfloat16()(z.bfloat16()).dtype == torch.bfloat16
