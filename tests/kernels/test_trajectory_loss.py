"""trajectory_loss against the formula of docs/spec.md section 5, differentiated by autograd."""

from __future__ import annotations

import math
from typing import NamedTuple

import pytest
import torch
from kernel_paths import over_paths, paths, share
from torch import Tensor

import wino_kernels
from wino_kernels import eager
from wino_kernels.cpu import tiles

THRESHOLDS = {"threshold": 0.35, "threshold_back": 0.9}


class Batch(NamedTuple):
    hidden: Tensor
    weight: Tensor
    labels: Tensor
    target_mask: Tensor
    candidate_mask: Tensor


def batch_of(rows: int, width: int, vocabulary: int, dtype: torch.dtype = torch.float64, leading: int = 1) -> Batch:
    hidden = torch.randn(leading, rows, width, dtype=torch.float64)
    weight = torch.randn(vocabulary, width, dtype=torch.float64)
    top = (hidden @ weight.T).argmax(-1)
    labels = torch.where(torch.rand(leading, rows) < 0.5, top, torch.randint(0, vocabulary, (leading, rows)))
    kind = torch.randint(0, 3, (leading, rows))
    return Batch(hidden.to(dtype), weight.to(dtype), labels, kind == 0, kind == 1)


def parts(batch: Batch, threshold: float, threshold_back: float) -> tuple[list[Tensor], list[int]]:
    """Row by row, from the text: sums of the three parts (differentiable) and their counts."""
    sums: list[Tensor] = [torch.zeros((), dtype=torch.float64) for _ in range(3)]
    counts = [0, 0, 0]
    for hidden, label, target, candidate in zip(
        batch.hidden.flatten(0, -2).double(),
        batch.labels.flatten().tolist(),
        batch.target_mask.flatten().tolist(),
        batch.candidate_mask.flatten().tolist(),
        strict=True,
    ):
        p = torch.softmax(batch.weight.double() @ hidden, -1)
        entropy = -(p * p.log()).sum()
        top, top_p = int(p.argmax()), float(p.detach().max())
        selected = [
            (target, -p[label].log() if target else None),
            (target and top == label and top_p < threshold_back, entropy),
            (candidate and top != label and top_p > threshold, entropy),
        ]
        for part, (chosen, value) in enumerate(selected):
            if chosen and value is not None:
                sums[part] = sums[part] + value
                counts[part] += 1
    return sums, counts


@over_paths("trajectory_loss")
@pytest.mark.parametrize(
    "shape", [(1, 1, 1), (12, 3, 1), (40, 5, 7), (20, 33, 31), (31, 12, 123), (9, 131, 65), (90, 8, 1000)]
)
def test_sums_counts_and_gradients(path: str, shape: tuple[int, int, int]) -> None:
    batch = batch_of(*shape, leading=2)
    batch.hidden.requires_grad_()
    batch.weight.requires_grad_()
    result = wino_kernels.trajectory_loss(*batch, **THRESHOLDS)
    sums, counts = parts(batch, **THRESHOLDS)
    assert result.counts.tolist() == counts
    if shape == (40, 5, 7):
        assert min(counts) >= 3 and counts[1] < counts[0] and counts[2] < int(batch.candidate_mask.sum())
    assert torch.allclose(result.sums, torch.stack(sums), rtol=1e-12)
    means = [s / max(c, 1) for s, c in zip(sums, counts, strict=True)]
    loss = means[0] + 0.1 * means[1] - means[2]
    assert torch.allclose(result.loss, loss, rtol=1e-12)
    if loss.requires_grad:
        expected = torch.autograd.grad(loss, (batch.hidden, batch.weight))
        gradients = torch.autograd.grad(result.loss, (batch.hidden, batch.weight))
        assert all(torch.allclose(a, b, rtol=1e-9, atol=1e-12) for a, b in zip(gradients, expected, strict=True))


@over_paths("trajectory_loss")
def test_gradcheck(path: str) -> None:
    batch = batch_of(12, 4, 9) if share(path) == 1 else batch_of(12, 2, 9)
    weights = torch.tensor([1.0, 0.3, -0.7], dtype=torch.float64)

    def weighted(hidden: Tensor, weight: Tensor) -> Tensor:
        result = wino_kernels.trajectory_loss(hidden, weight, *batch[2:], **THRESHOLDS)
        return result.loss + (result.sums * weights).sum()

    assert int(wino_kernels.trajectory_loss(*batch, **THRESHOLDS).counts.min()) >= 1
    leaves = (batch.hidden.requires_grad_(), batch.weight.requires_grad_())
    assert torch.autograd.gradcheck(weighted, leaves)


@over_paths("trajectory_loss")
def test_weights_and_denominators(path: str) -> None:
    """Two halves of a batch, each divided by the counts of the whole, add up to the whole."""
    batch = batch_of(60, 6, 11)
    whole = wino_kernels.trajectory_loss(*batch, weights=(0.5, 2.0, 3.0), **THRESHOLDS)
    means = whole.sums / whole.counts
    assert torch.allclose(whole.loss, 0.5 * means[0] + 2.0 * means[1] - 3.0 * means[2])
    for denominators in (whole.counts, whole.counts.double(), whole.counts.tolist()):
        halves = [
            wino_kernels.trajectory_loss(
                batch.hidden[:, rows],
                batch.weight,
                *(tensor[:, rows] for tensor in batch[2:]),
                weights=(0.5, 2.0, 3.0),
                denominators=denominators,
                **THRESHOLDS,
            )
            for rows in (slice(0, 23), slice(23, 60))
        ]
        assert torch.allclose(halves[0].loss + halves[1].loss, whole.loss)
        assert torch.equal(halves[0].counts + halves[1].counts, whole.counts)


@over_paths("trajectory_loss")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_empty_selections_contribute_nothing(path: str, dtype: torch.dtype) -> None:
    batch = batch_of(20, 4, 9, dtype)
    nothing = torch.zeros_like(batch.target_mask)
    batch.hidden.requires_grad_()
    batch.weight.requires_grad_()
    for target, candidate in ((nothing, nothing), (batch.target_mask, nothing), (nothing, batch.candidate_mask)):
        result = wino_kernels.trajectory_loss(*batch[:3], target, candidate, **THRESHOLDS)
        assert result.loss.isfinite()
        gradient, of_weight = torch.autograd.grad(result.loss, (batch.hidden, batch.weight))
        assert gradient.isfinite().all() and (gradient[~(target | candidate)] == 0).all()
        assert of_weight.isfinite().all() and bool(of_weight.any()) == bool(result.counts.any())
    empty = wino_kernels.trajectory_loss(*batch[:3], nothing, nothing, **THRESHOLDS)
    assert empty.loss == 0 and empty.counts.tolist() == [0, 0, 0]
    none = Batch(*(tensor[:, :0] if tensor is not batch.weight else tensor for tensor in batch))
    assert wino_kernels.trajectory_loss(*none, **THRESHOLDS).loss == 0


@over_paths("trajectory_loss")
def test_unused_rows_may_hold_anything(path: str) -> None:
    batch = batch_of(30, 4, 9)
    unused = ~(batch.target_mask | batch.candidate_mask)
    dirty = Batch(
        batch.hidden.masked_fill(unused[..., None], math.nan),
        batch.weight.clone().requires_grad_(),
        batch.labels.masked_fill(unused, -100),
        *batch[3:],
    )
    dirty.hidden.requires_grad_()
    result = wino_kernels.trajectory_loss(*dirty, **THRESHOLDS)
    assert torch.equal(result.sums, wino_kernels.trajectory_loss(*batch, **THRESHOLDS).sums)
    gradients = torch.autograd.grad(result.loss, (dirty.hidden, dirty.weight))
    assert all(gradient.isfinite().all() for gradient in gradients)


@over_paths("trajectory_loss")
def test_a_row_of_no_part_has_no_gradient(path: str) -> None:
    """Whatever it holds: a candidate whose logits are not numbers is more sure of nothing."""
    batch = batch_of(30, 4, 9)
    batch.candidate_mask[0, 3], batch.target_mask[0, 3] = True, False
    batch.hidden[0, 3] = math.nan
    leaves = (batch.hidden.requires_grad_(), batch.weight.requires_grad_())
    result = wino_kernels.trajectory_loss(*batch, **THRESHOLDS)
    of_hidden, of_weight = torch.autograd.grad(result.loss, leaves)
    assert result.loss.isfinite() and of_weight.isfinite().all()
    assert (of_hidden[0, 3] == 0).all() and of_hidden.any()


@over_paths("trajectory_loss")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_statistics_are_exchangeable(path: str, dtype: torch.dtype) -> None:
    """Of every row of some part as the definition has them, so that either's gradient follows from the other's."""
    batch = batch_of(40, 5, 70, dtype)
    thresholds = torch.tensor(0.35), torch.tensor(0.9)
    exact = eager.KERNELS["trajectory_loss"](batch.hidden.double(), batch.weight.double(), *batch[2:], *thresholds)[2]
    statistics = torch.ops.wino.trajectory_loss(*batch, *thresholds)[2]
    assert statistics.dtype == dtype and statistics.shape == (3, 40)
    assert torch.equal(statistics[2], exact[2].to(dtype)) and {0, 1, 3, 4} == set(exact[2].tolist())
    some = exact[2] != 0
    assert torch.allclose(statistics[:2, some].double(), exact[:2, some], rtol=1e-5, atol=1e-5)
    inputs = torch.tensor([1.0, 0.3, -0.7], dtype=dtype), *batch[:3]
    results = [torch.ops.wino.trajectory_loss_backward(*inputs, of, True) for of in (statistics, exact.to(dtype))]
    for ours, other in zip(*results, strict=True):
        assert torch.allclose(ours, other, rtol=1e-5, atol=1e-5)


@over_paths("trajectory_loss")
def test_a_target_needs_a_label(path: str) -> None:
    for label in (-100, 9):
        batch = batch_of(10, 4, 9)
        batch.target_mask[0, 4] = True
        batch.labels[0, 4] = label
        if path == "triton":  # where the host cannot look without a wait
            hidden = batch.hidden.clone().requires_grad_()
            loss = wino_kernels.trajectory_loss(hidden, *batch[1:], **THRESHOLDS).loss
            loss.backward()
            assert loss.isnan() and hidden.grad is not None and hidden.grad[0, 4].isnan().all()
        else:
            with pytest.raises(ValueError, match=rf"labels of targets must be in \[0, 9\), got {label}"):
                wino_kernels.trajectory_loss(*batch, **THRESHOLDS)
        batch.target_mask[0, 4] = batch.candidate_mask[0, 4] = False  # a label that nobody reads may be anything
        assert wino_kernels.trajectory_loss(*batch, **THRESHOLDS).loss.isfinite()


@over_paths("trajectory_loss")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_lower_precision(path: str, dtype: torch.dtype) -> None:
    """Error of value and gradient at most that of the same formula with an unfused head in the same dtype."""
    batch = batch_of(50, 16, 60, dtype)
    batch.hidden.requires_grad_()
    batch.weight.requires_grad_()
    result = wino_kernels.trajectory_loss(*batch, **THRESHOLDS)
    assert result.loss.dtype == torch.float32
    sums, counts = parts(batch, **THRESHOLDS)
    assert (result.counts - torch.tensor(counts)).abs().max() <= (0 if dtype == torch.float32 else 2)
    means = [s / c for s, c in zip(sums, counts, strict=True)]
    loss = means[0] + 0.1 * means[1] - means[2]
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 0.05, torch.float16: 0.02}[dtype]
    assert abs(float(result.loss.detach()) - float(loss.detach())) <= tolerance
    gradients = torch.autograd.grad(result.loss, (batch.hidden, batch.weight))
    for gradient, expected in zip(gradients, torch.autograd.grad(loss, (batch.hidden, batch.weight)), strict=True):
        assert gradient.dtype == dtype
        assert (gradient - expected).norm() <= tolerance * expected.norm()


@over_paths("trajectory_loss")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("vocabulary", [1, 2, 15, 16, 63, 64, 65, 130, 1003, 4099])
def test_errors_stay_below_those_of_the_definition(path: str, dtype: torch.dtype, vocabulary: int) -> None:
    """Beside float64, of sums and gradients; large logits, so that running maxima rise along the vocabulary."""
    batch = batch_of(24, 37, vocabulary, dtype)
    leaves = (batch.hidden.mul_(1.5).requires_grad_(), batch.weight.requires_grad_())
    everything = {"threshold": 0.0, "threshold_back": 1.0}
    exact = Batch(*(leaf.detach().double().requires_grad_() for leaf in leaves), *batch[2:])
    with wino_kernels.use_backend("eager"):
        wanted = wino_kernels.trajectory_loss(*exact, **everything)
        theirs = wino_kernels.trajectory_loss(*batch, **everything)
        grads_wanted = torch.autograd.grad(wanted.sums.sum(), exact[:2])
        grads_theirs = torch.autograd.grad(theirs.sums.sum(), leaves)
    ours = wino_kernels.trajectory_loss(*batch, **everything)
    grads_ours = torch.autograd.grad(ours.sums.sum(), leaves)
    # Which entropies count hangs on a comparison of logits that rounding may tie.
    if dtype == torch.float32 and torch.equal(ours.counts, wanted.counts):
        rounding = 1e-6 * (1 + wanted.sums.abs())
        assert ((ours.sums - wanted.sums).abs() <= 2 * (theirs.sums - wanted.sums).abs() + rounding).all()
    assert torch.equal(ours.counts, theirs.counts)
    assert torch.allclose(ours.sums, theirs.sums, rtol=1e-4, atol=1e-4)
    for mine, other, want, factor in zip(grads_ours, grads_theirs, grads_wanted, leaves[::-1], strict=True):
        off, allowed = (float((grad.double() - want).norm()) for grad in (mine, other))
        # Of one token the gradient is zero, but for the rounding of a logit that forward and backward both compute.
        size = want.norm() if vocabulary > 1 else factor.detach().norm()
        assert off <= 1.5 * allowed + 1e-6 * float(size) + 1e-12


@pytest.mark.parametrize("path", [path for path in paths("trajectory_loss") if path.startswith("cpu")], indirect=True)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tiles_and_chunks_of_rows_add_up(path: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small tiles: several of the vocabulary for few rows, several chunks of rows for many; and several threads."""
    few, many = batch_of(7, 9, 700, dtype), batch_of(3000, 5, 70, dtype)
    for batch in (few, many):
        results = []
        for tile_bytes, threads in ((4 << 20, 1), (1 << 14, 1), (1 << 14, 3)):
            monkeypatch.setattr(tiles, "TILE_BYTES", tile_bytes)
            torch.set_num_threads(threads)
            leaves = (batch.hidden.detach().requires_grad_(), batch.weight.detach().requires_grad_())
            result = wino_kernels.trajectory_loss(*leaves, *batch[2:], threshold=0.1, threshold_back=1.0)
            results.append((result.sums, result.counts, *torch.autograd.grad(result.sums.sum(), leaves)))
        whole, *parts_of = results
        for parted in parts_of:
            assert torch.equal(parted[1], whole[1])
            assert torch.allclose(parted[0], whole[0], rtol=1e-4)
            for mine, other in zip(parted[2:], whole[2:], strict=True):
                assert (mine - other).norm() <= (1e-5 if dtype == torch.float32 else 2e-2) * other.norm()
        assert all(torch.equal(a, b) for a, b in zip(parts_of[0], parts_of[1], strict=True))


@over_paths("trajectory_loss")
def test_only_the_gradients_asked_for(path: str) -> None:
    batch = batch_of(10, 4, 9)
    assert not wino_kernels.trajectory_loss(*batch, **THRESHOLDS).loss.requires_grad
    batch.hidden.requires_grad_()
    wino_kernels.trajectory_loss(*batch, **THRESHOLDS).loss.backward()
    assert batch.hidden.grad is not None and batch.weight.grad is None
    only_weight = Batch(batch.hidden.detach(), batch.weight.requires_grad_(), *batch[2:])
    wino_kernels.trajectory_loss(*only_weight, **THRESHOLDS).loss.backward()
    assert batch.weight.grad is not None


@over_paths("trajectory_loss")
def test_thresholds_as_tensors(path: str) -> None:
    batch = batch_of(40, 5, 7)
    by_number = wino_kernels.trajectory_loss(*batch, **THRESHOLDS)
    tensors = {name: torch.tensor(value) for name, value in THRESHOLDS.items()}
    assert torch.equal(wino_kernels.trajectory_loss(*batch, **tensors).sums, by_number.sums)
    assert wino_kernels.trajectory_loss(*batch, threshold=1.0, threshold_back=0.0).counts[1:].tolist() == [0, 0]


@over_paths("trajectory_loss")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_labels_at_the_edges_of_tiles(path: str, dtype: torch.dtype) -> None:
    edges = torch.tensor([0, 1, 31, 32, 63, 64, 127, 128, 255, 256, 298, 299])
    batch = batch_of(len(edges), 16, 300, dtype)
    batch = batch._replace(labels=edges[None], target_mask=torch.ones_like(batch.target_mask))
    batch.hidden.requires_grad_()
    result = wino_kernels.trajectory_loss(*batch, **THRESHOLDS)
    sums, _ = parts(batch, **THRESHOLDS)
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 1e-2}[dtype]
    assert torch.allclose(result.sums[0].double(), sums[0], rtol=tolerance)
    (gradient,) = torch.autograd.grad(result.sums[0], batch.hidden)
    (expected,) = torch.autograd.grad(sums[0], batch.hidden)
    assert (gradient - expected).norm() <= tolerance * expected.norm()


@over_paths("trajectory_loss")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_lowest_of_equal_tokens_is_the_top(path: str, dtype: torch.dtype) -> None:
    """In a tile, across an edge of tiles, and in the last tile."""
    for low, high in ((3, 9), (31, 32), (63, 64), (127, 128), (0, 299), (298, 299)):
        weight = torch.zeros(300, 4, dtype=dtype)
        weight[[low, high]] = 2.0
        labels = torch.tensor([[low, high]])
        everything, nothing = torch.ones_like(labels, dtype=torch.bool), torch.zeros_like(labels, dtype=torch.bool)
        hidden = torch.ones(1, 2, 4, dtype=dtype)
        as_targets = wino_kernels.trajectory_loss(hidden, weight, labels, everything, nothing, **THRESHOLDS)
        assert as_targets.counts.tolist() == [2, 1, 0]
        as_candidates = wino_kernels.trajectory_loss(hidden, weight, labels, nothing, everything, **THRESHOLDS)
        assert as_candidates.counts.tolist() == [0, 0, 1]


@over_paths("trajectory_loss")
def test_a_vocabulary_of_several_chunks(path: str) -> None:
    batch = batch_of(6, 4, 1100)
    batch.target_mask[0, :3], batch.candidate_mask[0, :3] = True, False
    batch.labels[0, :3] = torch.tensor([511, 512, 1099])
    leaves = (batch.hidden.requires_grad_(), batch.weight.requires_grad_())
    result = wino_kernels.trajectory_loss(*batch, **THRESHOLDS)
    sums, _ = parts(batch, **THRESHOLDS)
    assert torch.allclose(result.sums, torch.stack(sums), rtol=1e-12)
    expected = torch.autograd.grad(sums[0], leaves)
    gradients = torch.autograd.grad(result.sums[0], leaves)
    assert all(torch.allclose(a, b, rtol=1e-9, atol=1e-12) for a, b in zip(gradients, expected, strict=True))


@over_paths("trajectory_loss")
def test_few_rows_among_many(path: str) -> None:
    """The same as those rows alone, wherever they stand; the others cost no gradient and hold NaN."""
    few = batch_of(5, 3, 40, torch.float32)
    few = few._replace(target_mask=torch.tensor([[True, False, True, False, True]]))
    few = few._replace(candidate_mask=~few.target_mask)
    at = torch.tensor([0, 1, 700, 1023, 1024])
    hidden = torch.full((1, 1026, 3), math.nan)
    masks = torch.zeros(2, 1, 1026, dtype=torch.bool)
    labels = torch.full((1, 1026), -100)
    hidden[:, at], labels[:, at] = few.hidden, few.labels
    masks[:, :, at] = torch.stack((few.target_mask, few.candidate_mask))
    many = Batch(hidden, few.weight.clone(), labels, masks[0], masks[1])
    results = []
    for batch in (few, many):
        leaves = (batch.hidden.requires_grad_(), batch.weight.requires_grad_())
        result = wino_kernels.trajectory_loss(*batch, threshold=0.1, threshold_back=1.0)
        results.append((result, torch.autograd.grad(result.loss, leaves)))
    (alone, (of_few, weight_of_few)), (among, (of_many, weight_of_many)) = results
    assert torch.equal(among.counts, alone.counts) and torch.allclose(among.sums, alone.sums, rtol=1e-6)
    assert torch.allclose(of_many[:, at], of_few, rtol=1e-5, atol=1e-7)
    assert torch.allclose(weight_of_many, weight_of_few, rtol=1e-5, atol=1e-7)
    rest = torch.ones(1026, dtype=torch.bool).index_fill(0, at, False)
    assert (of_many[:, rest] == 0).all()


@over_paths("trajectory_loss")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_same_bits_again_whatever_the_strides(path: str, dtype: torch.dtype) -> None:
    batch = batch_of(20, 6, 50, dtype, leading=2)
    wide = torch.full((20, 3, 8), math.nan, dtype=dtype)
    wide[:, :2, :6] = batch.hidden.transpose(0, 1)
    weight = torch.full((50, 16), math.nan, dtype=dtype)
    weight[:, :6] = batch.weight
    columns = [tensor.t().contiguous().t() for tensor in batch[2:]]
    strided = Batch(wide[:, :2, :6].transpose(0, 1), weight[:, :6], *columns)
    assert not strided.hidden.is_contiguous() and not strided.labels.is_contiguous()
    results = []
    for one in (batch, batch, strided):
        leaves = (one.hidden.detach().requires_grad_(), one.weight.detach().requires_grad_())
        result = wino_kernels.trajectory_loss(*leaves, *one[2:], threshold=0.1, threshold_back=1.0)
        results.append((result.sums, result.counts, *torch.autograd.grad(result.sums.sum(), leaves)))
    assert min(results[0][1]) >= 1
    for first, again, other in zip(*results, strict=True):
        assert torch.equal(first, again)
        assert torch.allclose(first, other, rtol=1e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-5)


@over_paths("trajectory_loss")
def test_a_row_may_be_target_and_candidate(path: str) -> None:
    batch = batch_of(40, 5, 7)
    everything = torch.ones_like(batch.target_mask)
    both = batch._replace(target_mask=everything, candidate_mask=everything)
    result = wino_kernels.trajectory_loss(*both, **THRESHOLDS)
    sums, counts = parts(both, **THRESHOLDS)
    assert result.counts.tolist() == counts and counts[0] == 40 and min(counts) >= 1
    assert torch.allclose(result.sums, torch.stack(sums), rtol=1e-12)
