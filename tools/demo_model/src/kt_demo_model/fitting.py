# SPDX-License-Identifier: Apache-2.0
"""Turns one dense FFN into shared neurons, routed experts and a router, from activations.

Pure functions of tensors: no model, no files. Notation: N tokens, H hidden, E experts,
I intermediate neurons of which S are shared and the rest split evenly over the experts.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

CLUSTER_ITERATIONS = 8  # assignments change little after this
CLUSTER_TOKEN_STRIDE = 4  # co-activation of neurons is clear from every fourth token
ROUTER_RIDGE = 0.03  # of the mean input power: fewer tokens than would need none
# Of the mean activation power. Large, because 3 k tokens are few for 1536 inputs: at 0.01 held-out
# perplexity got worse than without any correction (39.8 against 33.1), at 0.6 better (32.6).
DOWN_RIDGE = 0.6
# Standard deviation of the router logits. Small, so that sigmoid(logit) is close to 1/2 and the
# normalised weights are close to equal (within about 5 %). Not smaller, because scores near 1/2 are
# rounded to steps of 6e-8: at 0.02 one token in a thousand had two experts tied to the last bit,
# and which of them it gets is then up to the implementation.
LOGIT_SCALE = 0.1


@dataclass(frozen=True)
class NeuronSplit:
    """Which neurons of the dense FFN go where.

    Attributes:
        shared: (S,) int64 indices of the neurons every token uses.
        routed: (E, (I - S) / E) int64 indices of each expert's neurons.
    """

    shared: Tensor
    routed: Tensor

    @property
    def order(self) -> Tensor:
        """(I,) int64: the shared neurons, then those of expert 0, 1, ..."""
        return torch.cat([self.shared, self.routed.flatten()])


@dataclass(frozen=True)
class Router:
    """A sigmoid router with a correction bias that takes part in the choice only.

    Attributes:
        weight: (E, H) float32 holding bf16 values, as they will be stored.
        bias: (E,) float32.
        top_k: Experts per token; also the factor on the normalised weights, which makes them
            average 1 and thus leaves the chosen experts' neurons as they were.
    """

    weight: Tensor
    bias: Tensor
    top_k: int

    def dense_weights(self, x: Tensor) -> Tensor:
        """Route as glm4_moe does: (N, H) -> (N, E) weights, 0 for experts not chosen."""
        scores = torch.sigmoid(x @ self.weight.T)
        topk_ids = (scores + self.bias).topk(self.top_k, dim=-1).indices
        topk_weights = scores.gather(1, topk_ids)
        topk_weights = topk_weights / (topk_weights.sum(-1, keepdim=True) + 1e-20) * self.top_k
        return torch.zeros_like(scores).scatter_(1, topk_ids, topk_weights)


def bf16_values(x: Tensor) -> Tensor:
    """Round to the nearest bf16 value, still as float32: what the checkpoint will hold."""
    return x.bfloat16().float()


def split_neurons(
    activations: Tensor, down: Tensor, num_shared: int, num_experts: int, generator: torch.Generator
) -> NeuronSplit:
    """Share the neurons that matter most; group the others by which tokens wake them up.

    Args:
        activations: (N, I), what multiplies the columns of `down`.
        down: (H, I), the dense down_proj.
        num_shared: S.
        num_experts: E.
        generator: Chooses the initial centres of the clustering.
    """
    strength = activations.abs() * down.norm(dim=0)
    ranked = strength.mean(0).argsort(descending=True)
    shared, rest = ranked[:num_shared].sort().values, ranked[num_shared:].sort().values
    patterns = strength[::CLUSTER_TOKEN_STRIDE, rest].T.contiguous()
    patterns /= patterns.norm(dim=1, keepdim=True).clamp_min(1e-12)
    capacity = len(rest) // num_experts
    centres = patterns[torch.randperm(len(rest), generator=generator)[:num_experts]]
    members = _assign_evenly(patterns @ centres.T, capacity)
    for _ in range(CLUSTER_ITERATIONS - 1):
        centres = patterns[members].sum(1)
        centres /= centres.norm(dim=1, keepdim=True)
        members = _assign_evenly(patterns @ centres.T, capacity)
    return NeuronSplit(shared, rest[members])


def _assign_evenly(similarity: Tensor, capacity: int) -> Tensor:
    """(items, clusters) similarities -> (clusters, capacity) items, most similar pairs first."""
    num_clusters = similarity.shape[1]
    members: list[list[int]] = [[] for _ in range(num_clusters)]
    assigned = [False] * len(similarity)
    for pair in similarity.flatten().argsort(descending=True, stable=True).tolist():
        item, cluster = divmod(pair, num_clusters)
        if not assigned[item] and len(members[cluster]) < capacity:
            assigned[item] = True
            members[cluster].append(item)
    return torch.tensor([sorted(items) for items in members])


def fit_router(
    x: Tensor,
    activations: Tensor,
    token_weights: Tensor,
    down: Tensor,
    split: NeuronSplit,
    top_k: int,
) -> Router:
    """Ridge-regress the size of each expert's output on the FFN input.

    Args:
        x: (N, H), the normed FFN input.
        activations: (N, I).
        token_weights: (N, 1), how much a token's expert sizes count.
        down: (H, I).
        split: Who owns which neuron.
        top_k: Experts per token.
    """
    squared_norms = []
    for neurons in split.routed:
        own, own_down = activations[:, neurons], down[:, neurons]
        squared_norms.append(((own @ (own_down.T @ own_down)) * own).sum(1))
    target = torch.stack(squared_norms, dim=1).clamp_min(0).sqrt()
    target -= target.mean(1, keepdim=True)  # only the order within a token counts
    target *= token_weights
    inputs = torch.cat([x, torch.ones(len(x), 1)], dim=1)
    gram = inputs.T @ inputs
    ridge = torch.full((len(gram),), ROUTER_RIDGE * float(gram.diagonal()[:-1].mean()))
    ridge[-1] = 0.0  # the intercept is not shrunk
    solution = torch.linalg.solve((gram + ridge.diag()).double(), (inputs.T @ target).double())
    weight, intercept = solution[:-1].T.float(), solution[-1].float()
    scale = LOGIT_SCALE / (x @ weight.T).std()
    # sigmoid(z) = 1/2 + z/4 for small z, hence the intercept becomes a bias four times smaller.
    return Router(bf16_values(weight * scale), intercept * scale / 4, top_k)


def refit_down(features: Tensor, token_weights: Tensor, down: Tensor, target: Tensor) -> Tensor:
    """Correct down_proj so that the neurons left on make up for those switched off.

    Args:
        features: (N, I), activations with the routed ones multiplied by their router weights.
        token_weights: (N, 1), how much a token's error counts.
        down: (H, I), the dense weights, neurons in the order of `features`.
        target: (N, H), the dense FFN's output.

    Returns:
        (H, I): the ridge solution, shrunk towards `down`.
    """
    weighted = features * token_weights
    gram = weighted.T @ weighted
    gram.diagonal().add_(DOWN_RIDGE * gram.diagonal().mean())
    error = (target - features @ down.T) * token_weights
    return down + torch.cholesky_solve(weighted.T @ error, torch.linalg.cholesky(gram)).T
