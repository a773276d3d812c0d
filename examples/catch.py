"""
Train DreamerV3 on Catch from images, and draw what its world model dreams::

    python examples/catch.py                       # about ten minutes on one core: examples/catch/dream.gif
    python examples/catch.py --agent catch.zip     # draw with an agent that was saved before

The model sees the first three images of an episode (framed in green) and predicts the rest from the actions alone (framed in
red). The first row is real, the second imagined, the third the absolute difference. Several episodes are drawn side by side.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import gymnasium as gym
import numpy as np
from PIL import Image
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor

from sb3_mbrl import DreamerV3
from sb3_mbrl.diagnostics.dream import dream
from sb3_mbrl.diagnostics.dream_plot import image_frames

OUTPUT = Path(__file__).parent / "catch" / "dream.gif"
CONTEXT, HORIZON, GAP = 3, 7, 10
"""Images that the model sees, images that it imagines (an episode has ten), and pixels between two episodes"""


def make_env() -> gym.Env:
    """Make Catch with images: 20 x 10 pixels of one channel."""
    return gym.make("Catch-v0", pixels=2)


def draw_dreams(agent: DreamerV3, seeds: Sequence[int], path: Path, fps: int = 2) -> Path:
    """
    Draw the dreams of several episodes side by side, as a GIF.

    :param agent: an agent that was trained on Catch with images
    :param seeds: the seed of each episode
    :param path: the file to write
    :param fps: frames per second
    """
    env, strips = make_env(), []
    for seed in seeds:
        (frames,) = (
            image_frames(episode, key)
            for episode in [dream(agent, env, context=CONTEXT, horizon=HORIZON, seed=seed)]
            for key in episode.real
        )
        strips.append(np.pad(frames, ((0, 0), (0, 0), (0, GAP), (0, 0)), constant_values=255))
    images = [Image.fromarray(frame) for frame in np.concatenate(strips, axis=2)]
    path.parent.mkdir(parents=True, exist_ok=True)
    images[0].save(path, save_all=True, append_images=images[1:], duration=round(1000 / fps), loop=0)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=6_000, help="real steps of training (default: 6000)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the agent (default: 0)")
    parser.add_argument("--agent", type=Path, help="a saved agent, to draw without training")
    parser.add_argument("--save", type=Path, help="where to save the trained agent")
    parser.add_argument("--output", type=Path, default=OUTPUT, help=f"the GIF (default: {OUTPUT})")
    args = parser.parse_args()
    if args.agent:
        agent = DreamerV3.load(args.agent, device="cpu")
    else:
        agent = DreamerV3("CnnPolicy", make_env(), buffer_size=20_000, seed=args.seed, device="cpu")
        agent.learn(args.steps, log_interval=100)
        if args.save:
            agent.save(args.save)
    mean, _ = evaluate_policy(agent, Monitor(make_env()), n_eval_episodes=20)
    print(f"Return: {mean:.2f} (the best is 1, random actions earn about -0.6)")
    print(f"Image: {draw_dreams(agent, range(1, 6), args.output)}")


if __name__ == "__main__":
    main()
