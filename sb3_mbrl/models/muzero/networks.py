"""The three networks of MuZero: representation, dynamics, prediction; and the projection of the consistency loss."""

import torch as th
from torch import nn

from sb3_mbrl.models.rssm.observations import Encoder, Layout
from sb3_mbrl.networks.layers import MLP, NORMS, Linear, SiLU


def min_max(latent: th.Tensor) -> th.Tensor:
    """Scale every row to the range from 0 to 1 (MuZero, appendix G): ``(s - min s) / (max s - min s)``."""
    low, high = latent.aminmax(dim=-1, keepdim=True)
    return (latent - low) / (high - low + 1e-5)


class Representation(nn.Module):
    """
    The representation ``h``, from an observation to a latent state.

    :param layout: the parts of the observations
    :param latent: the number of columns of a latent state
    :param units: the units of the layers on vectors
    :param layers: the number of layers on vectors
    :param depth: the depth of the convolutions on images
    :param norm: the norm of the layers
    """

    def __init__(self, layout: Layout, latent: int, units: int, layers: int, depth: int, norm: str) -> None:
        super().__init__()
        self.encoder = Encoder(layout, units, layers, depth, norm=norm)
        self.out = Linear(self.encoder.outputs, latent)

    def forward(self, obs: th.Tensor | dict[str, th.Tensor]) -> th.Tensor:
        """Return latent states ``(B, latent)``."""
        return min_max(self.out(self.encoder(obs)))


class Dynamics(nn.Module):
    """
    The dynamics ``g``, from a latent state and an action to the next latent state, the reward and the termination.

    The first layer adds a projection of the action to one of the latent state (the plain version: one layer on both side by
    side), and the last one has the outputs of all three, so that a step is few matrix products: at a batch of a few states
    their number decides the time.

    :param latent: the number of columns of a latent state
    :param actions: the number of columns of an encoded action
    :param units: the units of the layers
    :param layers: the number of layers
    :param rewards: the number of outputs of the reward
    :param norm: the norm of the layers
    """

    def __init__(self, latent: int, actions: int, units: int, layers: int, rewards: int, norm: str) -> None:
        super().__init__()
        self.sizes = [latent, rewards, 1]
        self.of_latent, self.of_action = Linear(latent, units), Linear(actions, units, bias=False)
        self.after_first = nn.Sequential(NORMS[norm](units), SiLU(), MLP(units, units, layers - 1, norm=norm))
        self.out = Linear(units, sum(self.sizes))
        with th.no_grad():
            self.out.weight[latent:] = 0.0  # rewards begin at 0

    def forward(self, latent: th.Tensor, action: th.Tensor) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        """
        Step.

        :param latent: ``(B, latent)``
        :param action: encoded, ``(B, actions)``
        :return: the next latent states ``(B, latent)``, the parameters of the rewards ``(B, rewards)``, and the logits of the
            terminations ``(B,)``
        """
        hidden = self.after_first(self.of_latent(latent) + self.of_action(action))
        change, reward, ended = self.out(hidden).split(self.sizes, -1)
        return min_max(latent + change), reward, ended.squeeze(-1)


class Chance(nn.Module):
    """
    The networks of a random environment (Antonoglou et al. 2022, Stochastic MuZero). A step is made of the agent's choice,
    which leads to an afterstate, and of chance, which is one of ``codes`` outcomes::

        as_k       = phi(s_k, a_k)       the afterstate
        p_k, q_k   = psi(as_k)           the distribution of the outcomes, and the value
        s_k+1, r_k = g(as_k, c_k+1)      dynamics, with the outcome in the place of the action
        c_k+1      = e(o_k+1)            what the outcome was, learned as a code

    :param layout: the parts of the observations
    :param codes: the number of outcomes
    :param latent: the number of columns of a latent state
    :param actions: the number of columns of an encoded action
    :param units: the units of the layers
    :param layers: the number of layers
    :param depth: the depth of the convolutions on images
    :param values: the number of outputs of the value
    :param norm: the norm of the layers
    """

    def __init__(
        self,
        layout: Layout,
        codes: int,
        latent: int,
        actions: int,
        units: int,
        layers: int,
        depth: int,
        values: int,
        norm: str,
    ) -> None:
        super().__init__()
        self.codes = codes
        self.afterstate = Dynamics(latent, actions, units, layers, 0, norm)
        self.predictions = Predictions(latent, units, layers, codes, values, norm)
        self.encoder = Encoder(layout, units, layers, depth, norm=norm)
        self.code = Linear(self.encoder.outputs, codes)

    def encode(self, obs: th.Tensor | dict[str, th.Tensor]) -> tuple[th.Tensor, th.Tensor]:
        """
        Name the outcomes that led to observations.

        :return: one-hot codes ``(B, codes)``, whose gradients are those of the scores (straight through), and the scores
        """
        scores = self.code(self.encoder(obs))
        code = nn.functional.one_hot(scores.argmax(-1), self.codes).to(scores)
        return code + scores - scores.detach(), scores


class Predictions(nn.Module):
    """
    The predictions ``f``, from a latent state to the parameters of the policy and of the value.

    :param latent: the number of columns of a latent state
    :param units: the units of the layers
    :param layers: the number of layers
    :param policy: the number of outputs of the policy
    :param values: the number of outputs of the value
    :param norm: the norm of the layers
    """

    def __init__(self, latent: int, units: int, layers: int, policy: int, values: int, norm: str) -> None:
        super().__init__()
        self.sizes = [policy, values]
        self.body = MLP(latent, units, layers, norm=norm)
        self.out = Linear(self.body.outputs, sum(self.sizes), scale=0.0)  # a uniform policy, and values of 0

    def forward(self, latent: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """Return the parameters of the policy ``(B, policy)`` and of the value ``(B, values)``."""
        policy, value = self.out(self.body(latent)).split(self.sizes, -1)
        return policy, value


class Projection(nn.Module):
    """
    The two networks of the consistency loss (EfficientZero, section 4.1, after SimSiam): a projection of latent states, and a
    head that predicts the projection of the true one.

    :param latent: the number of columns of a latent state
    :param units: the units of the layers and of the projection
    """

    def __init__(self, latent: int, units: int) -> None:
        super().__init__()
        self.project = nn.Sequential(MLP(latent, units, 1, norm="layer"), Linear(units, units))
        self.predict = nn.Sequential(MLP(units, units // 2, 1, norm="layer"), Linear(units // 2, units))

    def distance(self, imagined: th.Tensor, true: th.Tensor) -> th.Tensor:
        """
        Compute ``1 - cos(predict(project(imagined)), project(true))``; no gradient flows into the true state.

        :param imagined: the latent states of the dynamics, ``(..., latent)``
        :param true: those of the representation of what was really observed, ``(..., latent)``
        :return: ``(...)``
        """
        with th.no_grad():
            target = self.project(true)
        return 1 - th.cosine_similarity(self.predict(self.project(imagined)), target, dim=-1)
