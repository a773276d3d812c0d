"""Games with the interface of PettingZoo, without PettingZoo: race to a number, and games that cannot be mapped."""

import numpy as np
from gymnasium import spaces


class Race:
    """
    Race to 5: a player adds 1 or 2 to a sum, and whoever reaches 5 wins.

    :param names: the players
    :param order: the index of the player of each move, over and over
    :param rewards: of the winner and the loser
    """

    render_mode = None

    def __init__(self, names=("a", "b"), order=(0, 1), rewards=(1, -1), limit=100, spaces_by_player=None, mask="in_obs"):
        self.possible_agents, self.order, self.of_end, self.limit, self.mask = list(names), order, rewards, limit, mask
        self.own_spaces = spaces_by_player or {}

    def action_space(self, player):
        return self.own_spaces.get(player, spaces.Discrete(3))

    def observation_space(self, player):
        number = spaces.Box(0, 6, (1,), np.float32)
        mask = spaces.Box(0, 1, (3,), np.int8)
        return spaces.Dict({"observation": number, "action_mask": mask}) if self.mask == "in_obs" else number

    def reset(self, seed=None, options=None):
        self.sum, self.moves = 0, 0
        self.agents = list(self.possible_agents)
        self.rewards = dict.fromkeys(self.agents, 0)
        self.terminations, self.truncations = (dict.fromkeys(self.agents, False) for _ in range(2))
        self.infos = {name: self._info() for name in self.agents}
        self._select()

    def _info(self):
        return {"action_mask": self._mask()} if self.mask == "in_info" else {}

    def _select(self):
        self.agent_selection = self.possible_agents[self.order[self.moves % len(self.order)]]

    def _mask(self):
        return np.array([0, 1, self.sum < 4], np.int8)

    def observe(self, player):
        number = np.array([self.sum], np.float32)
        return {"observation": number, "action_mask": self._mask()} if self.mask == "in_obs" else number

    def step(self, action):
        mover = self.agent_selection
        self.sum, self.moves = self.sum + int(action), self.moves + 1
        self.infos = {name: self._info() for name in self.agents}
        if self.sum >= 5:
            self.rewards = {name: self.of_end[0] if name == mover else self.of_end[1] for name in self.agents}
            self.terminations = dict.fromkeys(self.agents, True)
        elif self.moves >= self.limit:
            self.truncations = dict.fromkeys(self.agents, True)
        self._select()

    def render(self):
        return str(self.sum)

    def close(self):
        pass


class OneLeaves(Race):
    """One player is out after the first move, the other one plays on."""

    def step(self, action):
        super().step(action)
        self.terminations[self.possible_agents[0]] = True


def env(render_mode=None, **kwargs):
    """What modules of PettingZoo have."""
    return Race(**kwargs)
