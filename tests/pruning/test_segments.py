import pytest
import torch

from pruning import VideoGrid
from pruning.segments import marginal_values, segment_video, standard_scores
from tests.pruning import reference
from tests.pruning.videos import scenes


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("noise", [0.2, 0.8, 1.1])
@pytest.mark.parametrize("constants", [(), (4,), (0, 3, 4)])
def test_segments_equal_the_plain_reference(seed, noise, constants):
    tokens, grid = scenes([3, 1, 4, 2], 5, noise=noise, seed=seed, constants=constants)
    cut = segment_video(tokens, grid, 0.6, 0.4)
    plain = tokens.double().tolist()
    starts = reference.segment_starts(plain, grid.frames, grid.positions, constants)
    values = reference.marginal_values(plain, grid.frames, grid.positions, constants, starts)
    assert list(cut.starts) == starts
    assert cut.values == pytest.approx(values, abs=1e-5)
    assert cut.scores == pytest.approx(reference.z_scores(values), abs=1e-3)
    assert cut.frame_segments().tolist() == reference.segment_of_frame(starts, grid.frames)


def test_scene_cuts_are_found():
    tokens, grid = scenes([5, 3, 8], 36, noise=0.3)
    assert segment_video(tokens, grid, 0.6, 0.4).starts == (0, 5, 8)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("segments", [1, 2, 5, 9, 10, 40])
def test_a_number_of_segments_cuts_where_least_repeats(seed, segments):
    tokens, grid = scenes([3, 1, 4, 2], 5, noise=0.8, seed=seed, constants=(4,))
    cut = segment_video(tokens, grid, 0.6, 0.4, segments)
    expected = reference.segment_starts(tokens.double().tolist(), 10, 5, (4,), segments=segments)
    assert list(cut.starts) == expected
    assert len(cut.starts) == min(segments, 10)


def test_a_number_of_segments_cuts_ties_by_index():
    tokens = torch.ones(6, 3)
    assert segment_video(tokens, VideoGrid(6, 1), 0.6, 0.4, 3).starts == (0, 1, 2)
    with pytest.raises(ValueError, match="at least 1 segment"):
        segment_video(tokens, VideoGrid(6, 1), 0.6, 0.4, 0)


def test_a_video_taken_in_pieces_is_cut_the_same(monkeypatch):
    tokens, grid = scenes([3, 1, 4, 2], 5)
    whole = segment_video(tokens, grid, 0.6, 0.4)
    for frames in (1, 2, 3, 9):
        monkeypatch.setattr("pruning.segments.numbers_at_once", lambda device, frames=frames: frames * 5 * 16)
        pieces = segment_video(tokens, grid, 0.6, 0.4)
        assert pieces.starts == whole.starts
        assert torch.equal(pieces.similarity, whole.similarity)
        assert pieces.values == whole.values


def test_a_share_of_exactly_beta_does_not_cut():
    # 5 positions, 2 of them repeat: m = 0.4.
    frame = torch.eye(5)
    after = torch.cat([frame[:2], -frame[2:]])
    assert segment_video(torch.cat([frame, after]), VideoGrid(2, 5), 0.6, 0.4).starts == (0,)
    assert segment_video(torch.cat([frame, after]), VideoGrid(2, 5), 0.6, 0.41).starts == (0, 1)


def test_constants_do_not_hide_a_cut():
    # 3 of 4 positions are newlines, which always repeat; the picture position changes.
    newline = torch.tensor([[0.0, 0.0, 1.0]]).expand(3, 3)
    tokens = torch.cat([torch.tensor([[1.0, 0, 0]]), newline, torch.tensor([[0, 1.0, 0]]), newline])
    assert segment_video(tokens, VideoGrid(2, 4), 0.6, 0.4).starts == (0,)
    cut = segment_video(tokens, VideoGrid(2, 4, constants=(1, 2, 3)), 0.6, 0.4)
    assert cut.starts == (0, 1)
    # Orthogonal pictures: v_0 = ½·(1 − 0), v_1 = ½·0. Newlines in the means would make them alike.
    assert cut.values == pytest.approx((0.5, 0.0))


def test_one_frame_is_one_segment():
    tokens, grid = scenes([1], 7)
    cut = segment_video(tokens, grid, 0.6, 0.4)
    assert (cut.starts, cut.values, cut.scores) == ((0,), (0.0,), (0.0,))
    assert cut.frame_segments().tolist() == [0]


def test_marginal_values_by_hand():
    means = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 0.0]])
    # 0: ½(1 − cos(f0, (1.5, 1))); 1: ½·0 + ½(1 − 0); 2: ½·cos(f2, (.5, 1))
    expected = [0.5 * (1 - 1.5 / 3.25**0.5), 0.5, 0.5 * 0.5 / 1.25**0.5]
    assert marginal_values(means) == pytest.approx(expected, abs=1e-6)


def test_scores_use_the_population_std_and_are_zero_for_equal_values():
    assert standard_scores([0.0, 1.0]) == [-1.0, 1.0]
    assert standard_scores([0.3, 0.30009]) == [0.0, 0.0]
    assert standard_scores([0.3]) == [0.0]


def test_large_float16_features_give_no_nan():
    tokens, grid = scenes([3, 3], 6, dim=64)
    cut = segment_video((tokens * 3000).half(), grid, 0.6, 0.4)
    assert cut.starts == (0, 3)
    assert cut.similarity.dtype == torch.float32
    assert cut.similarity.isfinite().all()


def test_a_grid_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="2 × 3 tokens expected, got 5"):
        segment_video(torch.zeros(5, 4), VideoGrid(2, 3), 0.6, 0.4)
    with pytest.raises(ValueError, match="not constant"):
        segment_video(torch.zeros(4, 4), VideoGrid(2, 2, constants=(0, 1)), 0.6, 0.4)
