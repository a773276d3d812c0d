"""Captured and mixed-precision updates of a whole agent against plain ones."""

import pytest
import torch as th

from sb3_mbrl import DreamerV3
from sb3_mbrl.agent.cuda_graph import CapturedUpdate, make_capturable, precision
from tests.algorithms.muzero.agents import small as small_muzero
from tests.helpers.dreamers import SMALL, small, weights


@pytest.fixture(scope="module")
def trained_eagerly():
    agent = small().learn(80)
    with th.no_grad():
        for head in (agent.policy.actor, agent.policy.critic, agent.world_model.reward_head):
            head.out.weight.normal_()  # they begin at (nearly) 0, and so do gradients
    return agent


def test_an_agent_of_a_gpu_continues_without_one():
    """torch's Adam refuses on a CPU what a captured graph needs, and it is saved with the agent."""
    agent = small(optimizer_class="adam", optimizer_kwargs={}).learn(48)
    make_capturable(agent.optimizer)
    agent.update._run = None
    agent.train(1, 4)
    assert not any(group["capturable"] for group in agent.optimizer.param_groups)


def test_counters_of_a_gpu_are_plain_numbers_on_a_cpu():
    """Regression: counters were tensors, so the optimiser grouped no parameters and updated each on its own."""
    agent = small().learn(48)
    make_capturable(agent.optimizer)
    agent.update._run = None
    calls = []
    update = agent.optimizer._update
    agent.optimizer._update = lambda parameters, *rest: (calls.append(len(parameters)), update(parameters, *rest))
    agent.train(1, 4)
    assert len(calls) == 3, "the world model's, the actor's and the critic's"


def test_parameters_that_are_put_in_are_not_played_back():
    agent = small().learn(48)
    assert agent.update._run is not None
    agent.set_parameters(agent.get_parameters())
    assert agent.update._run is None


def test_matrix_products_alone_lose_precision():
    agent = small().learn(80)
    batch = agent.sequences.on_device(agent.sequences.sample(4, generator=th.Generator().manual_seed(0)), agent.device)
    results = {}
    for mixed in (False, True):
        agent.update.generator = th.Generator().manual_seed(1)
        with precision(mixed, agent.device):
            loss, _, metrics = agent._losses(*batch, agent.update.generator)
        results[mixed] = (loss, metrics)
        assert loss.dtype == th.float32
    assert float(results[True][0]) == pytest.approx(float(results[False][0]), rel=0.02)
    assert float(results[True][0]) != float(results[False][0])
    assert float(results[True][1]["train/entropy"]) == pytest.approx(float(results[False][1]["train/entropy"]), rel=0.02)


def test_mixed_precision_reaches_every_weight(trained_eagerly):
    """Regression: in torch before 2.10 the actor had no gradients, since autocast kept its weights as cast in imagination."""
    agent, gradients = trained_eagerly, {}
    batch = agent.sequences.on_device(agent.sequences.sample(4, generator=th.Generator().manual_seed(0)), agent.device)
    for mixed in (False, True):
        agent.update.generator = th.Generator().manual_seed(1)
        with precision(mixed, agent.device):
            loss, _, _ = agent._losses(*batch, agent.update.generator)
        agent.optimizer.zero_grad()
        loss.backward()
        parts = (agent.policy.actor, agent.policy.critic, agent.world_model)
        gradients[mixed] = [th.cat([value.grad.flatten() for value in part.parameters()]) for part in parts]
    for exact, rough in zip(gradients[False], gradients[True], strict=True):
        assert float(th.nn.functional.cosine_similarity(exact, rough, dim=0)) > 0.9


def test_mixed_precision_learns_and_saves(tmp_path):
    agent = small(mixed_precision=True).learn(80)
    assert all(value.isfinite().all() for value in weights(agent))
    agent.save(tmp_path / "agent")
    assert DreamerV3.load(tmp_path / "agent").mixed_precision is True


@pytest.mark.parametrize("wrong", [{"compile": "always"}, {"mixed_precision": "bf16"}])
def test_words_that_mean_nothing_are_refused(wrong):
    with pytest.raises(ValueError, match="choose 'auto', True or False"):
        small(**wrong)


def test_precision_and_compilation_are_printed(capsys):
    small(verbose=1).learn(60)
    assert "Updates are run as they are (compile='auto', cpu)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (small, r"imagine_last=.*batch_size=4, batch_length=8.*Lower imagine_last first, then batch_size, then batch_length"),
        (small_muzero, r"batch_size=8, unroll_steps=3. Lower batch_size first, then unroll_steps\. "),
    ],
    ids=["DreamerV3", "MuZero"],
)
def test_too_little_memory_names_what_to_lower(tmp_path, make, words):
    """MuZero's users were told to lower imagine_last, which is DreamerV3's."""
    agent = make().learn(60)

    def fails(batch):
        raise th.cuda.OutOfMemoryError("CUDA out of memory")

    agent.update._run = fails
    with pytest.raises(RuntimeError, match=words):
        agent.learn(60)
    agent.save(tmp_path / "agent")


@pytest.mark.skipif(not th.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1"])
@pytest.mark.parametrize(("mixed", "tolerance"), [(False, 0.02), (True, 0.2)])
def test_captured_and_eager_updates_agree(env, mixed, tolerance):
    """
    The same buffer, the same batches and the same random numbers: the same weights, but for the order of sums. How far apart
    they are is measured in units of how far they have moved.
    """

    def run(compile):
        more = {"device": "cuda", "compile": compile, "mixed_precision": mixed, "optimizer_kwargs": {"warmup": 2}}
        agent = DreamerV3("MlpPolicy", env, **{**SMALL, **more, "learning_starts": 10_000})
        agent.learn(160)
        before = th.cat([value.flatten() for value in weights(agent) if value.is_floating_point()])
        for _ in range(12):
            agent.train(1, 4)
        return agent, before, th.cat([value.flatten() for value in weights(agent) if value.is_floating_point()])

    (captured, start, left), (eager, same_start, right) = run("auto"), run(False)
    assert isinstance(captured._play, CapturedUpdate)
    assert captured._play._graph is not None
    assert captured._n_updates == eager._n_updates == 12
    th.testing.assert_close(start, same_start)
    assert float((left - right).norm()) < tolerance * float((right - start).norm())
