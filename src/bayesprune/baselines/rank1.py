"""Rank-1 Bayesian networks (Dusenberry et al., 2020): shared weights, and a mixture posterior over rank-1 factors."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from bayesprune.baselines.rank1_layer import Family, Rank1Layer
from bayesprune.common.checks import check_choice, check_number
from bayesprune.posterior import Samples, preserved
from bayesprune.posterior.predict import answer

_CONVERTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)

Output = Literal["logits", "mean"]


class Rank1Network(nn.Module):
    r"""A network whose linear and convolution layers are rank-1 Bayesian; `to_rank1` builds it.

    With q_k the posterior of member k over all factors and p the prior, training minimises

        mean over members and examples of −log p(y | x, one draw)  +  s·KL/N,   s = `kl_scale(step, annealing_steps)`

    In training mode `forward` tiles the n inputs by the K members and returns K·n logits, member after member, each of
    its own draw: pair them with `tile(labels)` and add `kl()`·s/N. In evaluation mode it returns n rows: the logarithm of
    the mean probability over K members × `draws` draws, which is a valid set of logits (softmax gives that mean back), or
    for a regression the mean, so the network predicts wherever a plain one does. There the noise has a fixed seed: equal
    inputs, equal outputs.

    The mixture's KL: by convexity KL((1/K)Σ q_k ‖ p) ≤ (1/K)Σ KL(q_k ‖ p). `kl("mean")` is that bound; the published
    script adds the members' terms up without the 1/K, `kl("sum")`, and its printed results are of that objective.

    Args:
        network: The converted network.
        members: K.
        draws: Draws a member in evaluation mode; the published evaluation has 1.
        seed: Seed of the noise in evaluation mode.
        output: "logits" of classes, or "mean", a regression's means or pairs (mean, variance).

    Example:
        >>> from torch.nn import functional as F
        >>> model = to_rank1(nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)), members=4)
        >>> images, labels = torch.randn(5, 3), torch.tensor([0, 1, 0, 1, 1])
        >>> loss = F.cross_entropy(model(images), model.tile(labels)) + kl_scale(0, 100) * model.kl() / 50_000
        >>> loss.backward()
        >>> model.eval()(images).shape
        torch.Size([5, 2])

    Reference:
        Dusenberry, Jerfel, Wen, Ma, Snoek, Heller, Lakshminarayanan & Tran, "Efficient and scalable Bayesian neural
        nets with rank-1 factors", ICML 2020, sections 2 and 3; baselines/cifar/rank1_bnn.py of uncertainty-baselines.
    """

    def __init__(
        self, network: nn.Module, members: int, *, draws: int = 1, seed: int = 0, output: Output = "logits"
    ) -> None:
        super().__init__()
        if draws < 1:
            raise ValueError(f"draws={draws} must be at least 1.")
        check_choice("output", output, ("logits", "mean"))
        self.network, self.members, self.draws, self.seed, self.output = network, members, draws, seed, output

    @property
    def layers(self) -> dict[str, Rank1Layer]:
        """The converted layers by the name they had in the plain network."""
        return {name: module for name, module in self.network.named_modules() if isinstance(module, Rank1Layer)}

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """Return the network's output for K·n inputs in training mode, the mixture's for n in evaluation mode.

        The mixture of logits is n log-probabilities; that of means their mean, and of pairs (mean, variance) the mean and the
        whole variance.
        """
        tiled, by_name = self.tile(inputs), self.tile(named)
        if self.training:
            return self.network(*tiled, **by_name)
        generator = torch.Generator(device=next(self.network.parameters()).device).manual_seed(self.seed)
        for layer in self.layers.values():
            layer.generator = generator
        try:
            found = [answer(self.network(*tiled, **by_name)) for _ in range(self.draws)]
        finally:
            for layer in self.layers.values():
                layer.generator = None
        return self._mixture(found)

    def _mixture(self, found: list[Any]) -> Any:
        """Return what all members and draws say together."""
        if self.output == "logits":
            logits = self._apart(found).float()
            if logits.ndim == 3 and logits.shape[-1] == 1:  # of class 1, beside class 0
                logits = functional.pad(logits, (1, 0))
            log_probabilities = torch.log_softmax(logits, dim=-1)
            return log_probabilities.logsumexp(dim=0) - math.log(self.draws * self.members)
        if isinstance(found[0], Tensor):
            return self._apart(found).mean(0)
        means, variances = (self._apart([pair[i] for pair in found]) for i in (0, 1))
        return means.mean(0), (variances + (means - means.mean(0)).square()).mean(0)

    def _apart(self, found: list[Tensor]) -> Tensor:
        """Return the outputs of the draws with an axis of draws and members before that of the inputs."""
        return torch.cat(found).unflatten(0, (self.draws * self.members, -1))

    def tile(self, batch: Any) -> Any:
        """Return K copies of a batch (inputs or labels) one after another, the order of `forward`'s outputs.

        Of tuples, lists and mappings every tensor is repeated; what is no tensor stays.
        """
        if isinstance(batch, Tensor):
            return batch.repeat(self.members, *[1] * (batch.dim() - 1)) if batch.dim() else batch
        if isinstance(batch, Mapping):
            return {name: self.tile(part) for name, part in batch.items()}
        return [self.tile(part) for part in batch] if isinstance(batch, (tuple, list)) else batch

    def kl(
        self,
        mixture: Literal["sum", "mean"] = "sum",
        *,
        monte_carlo: bool = False,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Return the KL term over all layers and members, in nats; divide by N and scale it for a mean loss.

        Args:
            mixture: "sum" as the published script, "mean" for the bound above.
            monte_carlo: Estimate each KL from one draw, log q(x) − log p(x), as the published code does for Cauchy
                factors, instead of the closed form.
            generator: Source of those draws.
        """
        check_choice("mixture", mixture, ("sum", "mean"))
        terms = [layer.kl(monte_carlo=monte_carlo, generator=generator) for layer in self.layers.values()]
        return torch.stack(terms).sum() / (self.members if mixture == "mean" else 1)

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Return optimizer groups: the factors, which the KL regularises, without weight decay; all else with it.

        The published 1e-4·‖w‖² is `weight_decay` = 2e-4 here, for L = ℓ + (weight_decay/2)‖w‖².
        """
        factors = [parameter for layer in self.layers.values() for parameter in layer.factors()]
        known = {id(parameter) for parameter in factors}
        rest = [parameter for parameter in self.parameters() if id(parameter) not in known]
        return [{"params": rest, "weight_decay": weight_decay}, {"params": factors, "weight_decay": 0.0}]

    @torch.no_grad()
    def member_state(
        self, member: int, generator: torch.Generator | None = None, *, mean: bool = False
    ) -> dict[str, Tensor]:
        """Return member k as a state dict of the *plain* network: W∘(γ_k α_kᵀ), b_k, one draw for all inputs.

        Args:
            member: k.
            generator: Source of the draw.
            mean: Take the factors' means instead of a draw.

        Raises:
            IndexError: There is no such member.
        """
        if not 0 <= member < self.members:
            raise IndexError(f"member={member}: there are {self.members} members.")
        places = {n: m for n, m in self.network.named_modules(remove_duplicate=False) if isinstance(m, Rank1Layer)}
        drawn = {id(m): m.member_weight(member, generator, mean=mean) for m in self.layers.values()}
        state: dict[str, Tensor] = {}
        for name, tensor in self.network.state_dict().items():
            if not any(name.startswith(f"{place}.") if place else True for place in places):
                state[name] = tensor.clone()
        for name, layer in places.items():
            weight, bias = drawn[id(layer)]
            prefix = f"{name}." if name else ""
            state[f"{prefix}weight"] = weight
            if bias is not None:
                state[f"{prefix}bias"] = bias
        return state

    def collect(
        self,
        samples: Samples,
        plain: nn.Module,
        draws: int = 1,
        generator: torch.Generator | None = None,
        **info: Any,
    ) -> None:
        """Store members × draws as samples of the plain network, for `predict`, metrics and health.

        Args:
            samples: Where they go.
            plain: A network as it was before `to_rank1`; it comes back as it was.
            draws: Draws a member.
            generator: Source of the draws.
            **info: What to remember of each beside `member` and `draw`, as in `Samples.collect`.
        """
        with preserved(plain):
            for member in range(self.members):
                for draw in range(draws):
                    plain.load_state_dict(self.member_state(member, generator))
                    samples.collect(plain, **{**info, "member": member, "draw": draw})


def to_rank1(
    model: nn.Module,
    members: int = 4,
    *,
    prior: Family = "gaussian",
    prior_mean: float = 1.0,
    prior_std: float = 0.1,
    posterior_std: float | None = None,
    random_sign: float = 0.5,
    exclude: Sequence[str] = (),
    draws: int = 1,
    seed: int = 0,
    output: Output = "logits",
) -> Rank1Network:
    """Return a rank-1 Bayesian copy of a network; the network itself stays plain.

    Every Linear, Conv1d, Conv2d and Conv3d becomes a `Rank1Layer` around its own weight; the rest, BatchNorm among it,
    is shared by the members and sees the tiled batch. Means start at ±1 and standard deviations near √(0.001/0.999) ≈ 0.032
    (Cauchy scales at 0.001).

    Args:
        model: Any network made of such layers.
        members: Mixture components K.
        prior: "gaussian" or "cauchy"; the posterior's family too, as published.
        prior_mean: 1 on CIFAR.
        prior_std: 0.1 on CIFAR (scale, for Cauchy).
        posterior_std: Initial posterior standard deviation (scale); None is √(0.001/0.999) ≈ 0.032 for Gaussian factors,
            as published, and 0.001 for Cauchy ones: from 0.032 their tails drown the signal of a deep network.
        random_sign: Probability that a mean starts at +1; 1 starts all of them there, which suits small data, where the
            KL over N turns the −1 around before the network has learned.
        exclude: Name patterns (of shell kind) of layers to leave plain.
        draws: Draws a member in evaluation mode.
        seed: Seed of the initial factors and of the noise in evaluation mode.
        output: What the network gives: "logits" of classes, or "mean", a regression's means or pairs (mean, variance).

    Raises:
        ValueError: A setting out of range, no layer to convert, or one that cannot be (a multi-head attention's).

    Example:
        >>> plain = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 2))
        >>> sorted(to_rank1(plain, members=2, exclude=["0"]).layers)
        ['2']

    Reference:
        Dusenberry et al. (2020), section 4; rank1_bnn_utils.py of uncertainty-baselines.
    """
    if not isinstance(members, int) or members < 1:
        raise ValueError(f"members={members!r} must be an integer of at least 1.")
    check_choice("prior", prior, ("gaussian", "cauchy"))
    if posterior_std is None:
        # Paper: the scripts' default of 0.032 for both families; a Cauchy posterior does not train from there
        posterior_std = (0.001 / 0.999) ** 0.5 if prior == "gaussian" else 0.001
    for name, value in (("prior_std", prior_std), ("posterior_std", posterior_std)):
        check_number(name, value, minimum=0, strict=True)
    if not 0 <= random_sign <= 1:
        raise ValueError(f"random_sign={random_sign} is a probability; give a number in [0, 1].")
    network = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    made: dict[int, Rank1Layer] = {}
    places = [
        (name, module)
        for name, module in network.named_modules(remove_duplicate=False)
        if isinstance(module, _CONVERTED) and not any(fnmatchcase(name, pattern) for pattern in exclude)
    ]
    for name, module in places:
        parent = network.get_submodule(name.rpartition(".")[0])
        if isinstance(parent, nn.MultiheadAttention):
            raise ValueError(
                f"{name!r} belongs to nn.MultiheadAttention, which reads its weights without calling its layers; "
                f"leave it plain with exclude=[{name!r}]."
            )
        if isinstance(module.weight, nn.UninitializedParameter):
            raise ValueError(f"{name!r} is a lazy layer without weights yet; run the model once before to_rank1.")
        if id(module) not in made:  # a layer reachable under two names stays one layer
            made[id(module)] = Rank1Layer(
                module, members, family=prior, prior_mean=prior_mean, prior_std=prior_std, posterior_std=posterior_std,
                random_sign=random_sign, generator=generator,
            )  # fmt: skip
        if name:
            setattr(parent, name.rpartition(".")[2], made[id(module)])
        else:
            network = made[id(module)]
    if not made:
        raise ValueError("model has no Linear or Conv layer to convert that exclude leaves; nothing would be Bayesian.")
    return Rank1Network(network, members, draws=draws, seed=seed, output=output)


def kl_scale(step: int, annealing_steps: int) -> float:
    """Return the KL's weight at a step, min(1, (step+1)/annealing_steps); published: 200 of 250 epochs of steps.

    Example:
        >>> kl_scale(0, 4), kl_scale(3, 4), kl_scale(100, 4), kl_scale(0, 0)
        (0.25, 1.0, 1.0, 1.0)
    """
    return min(1.0, (step + 1) / annealing_steps) if annealing_steps > 0 else 1.0


def step_decay(
    step: int,
    total_steps: int,
    peak: float = 1.0,
    *,
    at: Iterable[float] = (0.4, 0.8, 0.9),
    factor: float = 0.2,
    warmup_steps: int = 0,
) -> float:
    """Return the piecewise constant step size of the rank-1 BNN's SGD: ×0.2 at 40, 80 and 90 % of the run.

    Args:
        step: From 0.
        total_steps: Steps of the run.
        peak: Step size before the first drop.
        at: Shares of the run at which it drops.
        factor: What it is multiplied with.
        warmup_steps: Linear ramp from 0 to `peak`; published: one epoch.

    Example:
        >>> [round(step_decay(step, 10), 3) for step in (0, 3, 4, 8, 9)]
        [1.0, 1.0, 0.2, 0.04, 0.008]
    """
    drops = sum(step >= int(share * total_steps) for share in at)
    return peak * factor**drops * (min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0)
