"""Environments to act in, from gymnasium."""

from __future__ import annotations

from typing import Any

from distdl.errors import InputError


def make_environment(config: Any) -> Any:
    """A gymnasium environment; Atari's as Machado et al. 2018 advise: sticky actions, an episode has all lives.

    The family's Config has `environment` (its name), `observation` (shape), `actions` and `max_episode_steps`. Raises
    InputError where it cannot be made or has other observations or actions.
    """
    import gymnasium

    try:
        if config.environment.startswith("ALE/"):
            import ale_py

            gymnasium.register_envs(ale_py)
            env = gymnasium.make(config.environment, frameskip=1)
            env = gymnasium.wrappers.FrameStackObservation(gymnasium.wrappers.AtariPreprocessing(env), 4)
        else:
            env = gymnasium.make(config.environment, disable_env_checker=True)
    except (ImportError, gymnasium.error.Error) as error:
        fix = "another model.environment; ALE/... needs pip install ale-py opencv-python-headless"
        raise InputError(f"the environment {config.environment} cannot be made: {error}", fix=fix) from error
    shape, n = env.observation_space.shape, getattr(env.action_space, "n", None)
    if shape != config.observation or n != config.actions:
        what = f"{config.environment} has observations of shape {list(shape or ())} and {n or 'no discrete'} actions"
        raise InputError(what, fix=f"model.observation={list(shape or ())} model.actions={n}")
    return gymnasium.wrappers.TimeLimit(env, config.max_episode_steps)
