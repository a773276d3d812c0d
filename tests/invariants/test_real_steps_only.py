"""Only real steps count: no counter and no callback sees an imagined one."""

from stable_baselines3.common.callbacks import BaseCallback

from tests.helpers.agents import tiny


def test_only_real_steps_count():
    class Count(BaseCallback):
        calls = 0

        def _on_step(self) -> bool:
            self.calls += 1
            assert self.model.num_timesteps == self.calls
            assert self.model.replay_buffer is buffer
            return True

    agent, callback = tiny(), Count()
    buffer = agent.replay_buffer
    agent.learn(150, callback=callback)
    assert callback.calls == agent.num_timesteps == agent.replay_buffer.pos == 150
