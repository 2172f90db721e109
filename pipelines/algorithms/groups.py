"""Groups that prefer differently: who is worst off, and which groups there are.

Papers: Bradley and Terry 1952; Chakraborty et al. 2024 (MaxMin-RLHF), section 4: the policy that maximises min over groups u of
F_u(pi) = E[r_u] - beta KL(pi || pi_ref), groups found by hard expectation maximisation; Sen 2017 (egalitarian rule). Axes: G
groups, N pairs, H features, M annotators, U clusters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import logsigmoid

RIDGE = 1.0
"""Prior precision of a cluster's weights: without it separable pairs have no finite maximum."""


def worst_off(means_G: torch.Tensor) -> int:
    """The group with the smallest expected reward, argmin_u F_u(pi): the KL in F_u is every group's."""
    return int(means_G.argmin())


@dataclass(frozen=True)
class Groups:
    """What was found: each annotator's cluster [M], the clusters' weights [U, H], the pairs' log-likelihood in nats."""

    members: list[int]
    weights: torch.Tensor
    log_likelihood: float


def find_groups(
    differences_NH: torch.Tensor, annotators: Sequence[int], clusters: int, seed: int, restarts: int = 5, most: int = 100
) -> Groups:
    """Clusters of annotators with a linear Bradley-Terry reward each, by hard expectation maximisation.

    ``differences_NH``: features of the chosen answer less those of the rejected one; ``annotators`` [N] numbers 0..M-1 who
    preferred it. E-step: an annotator belongs to argmax_u sum log sigmoid(w_u . d) over their own pairs. M-step: each w_u is most
    likely for its members' pairs (ridge ``RIDGE``; the problem is convex). Ends where nobody moves; the best of ``restarts``
    random beginnings. Clusters are numbered in the order of their first member. Raises ValueError for fewer annotators than
    clusters.
    """
    people_N = torch.as_tensor(annotators, dtype=torch.long)
    count = int(people_N.max()) + 1
    if count < clusters:
        raise ValueError(f"{count} annotators cannot make {clusters} groups")
    features_NH = differences_NH.double()
    generator = torch.Generator().manual_seed(seed)
    found = [_climb(features_NH, people_N, clusters, count, generator, most) for _ in range(restarts)]
    return max(found, key=lambda groups: groups.log_likelihood)


def _climb(
    features_NH: torch.Tensor, people_N: torch.Tensor, clusters: int, count: int, generator: torch.Generator, most: int
) -> Groups:
    """One run from a random beginning in which no cluster is empty."""
    members_M = torch.arange(count)[torch.randperm(count, generator=generator)] % clusters
    weights_UH = torch.zeros(clusters, features_NH.shape[1], dtype=torch.float64)
    for _ in range(most):
        weights_UH = torch.stack([
            most_likely_weights(features_NH[members_M[people_N] == u], weights_UH[u]) for u in range(clusters)
        ])  # fmt: skip
        fit_MU = torch.zeros(count, clusters, dtype=torch.float64)
        fit_MU.index_add_(0, people_N, logsigmoid(features_NH @ weights_UH.T))
        moved_M = _all_taken(fit_MU)
        if torch.equal(moved_M, members_M):
            break
        members_M = moved_M
    return _numbered(members_M, weights_UH, float(fit_MU.gather(1, members_M[:, None]).sum()))


def _all_taken(fit_MU: torch.Tensor) -> torch.Tensor:
    """Each annotator's best cluster [M]; a cluster that nobody chose takes the one who loses least by it."""
    members_M = fit_MU.argmax(1)
    for u in range(fit_MU.shape[1]):
        if not bool((members_M == u).any()):
            crowded_M = torch.bincount(members_M, minlength=fit_MU.shape[1])[members_M] > 1
            loss_M = (fit_MU.max(1).values - fit_MU[:, u]).masked_fill(~crowded_M, torch.inf)
            members_M[loss_M.argmin()] = u
    return members_M


def _numbered(members_M: torch.Tensor, weights_UH: torch.Tensor, log_likelihood: float) -> Groups:
    order = list(dict.fromkeys(members_M.tolist()))
    return Groups([order.index(u) for u in members_M.tolist()], weights_UH[order], log_likelihood)


def most_likely_weights(features_NH: torch.Tensor, start_H: torch.Tensor, ridge: float = RIDGE) -> torch.Tensor:
    """w [H] that maximises sum log sigmoid(w . d) - ridge / 2 |w|^2, by Newton's method; steps that overshoot are halved."""
    weights_H = start_H.clone()
    identity_HH = torch.eye(len(weights_H), dtype=features_NH.dtype)

    def objective(w_H: torch.Tensor) -> torch.Tensor:
        return logsigmoid(features_NH @ w_H).sum() - ridge / 2 * w_H @ w_H

    for _ in range(100):
        share_N = torch.sigmoid(features_NH @ weights_H)
        gradient_H = features_NH.T @ (1 - share_N) - ridge * weights_H
        hessian_HH = (features_NH * (share_N * (1 - share_N))[:, None]).T @ features_NH + ridge * identity_HH
        step_H = torch.linalg.solve(hessian_HH, gradient_H)
        before = objective(weights_H)
        for _ in range(30):
            if objective(weights_H + step_H) >= before:
                break
            step_H = step_H / 2
        weights_H = weights_H + step_H
        if float(step_H.abs().max()) < 1e-9:
            break
    return weights_H
