"""gymnasium calls CartPole-v1 solved at a mean return of 475 over 100 episodes."""

from benchmarks.acceptance import Bench, Case


def cartpole(bench: Bench) -> float:
    """The worst of three seeds, by the weights at the end: after 12,000 training steps, none chosen by its return."""
    path = bench.data("episodes", "synthetic", task="episodes", rows=1000, test_rows=100)
    runs = []
    for seed in range(3):
        run = bench.train("dqn", f"data.path={path}", f"name=dqn-{seed}", f"seed={seed}", "evaluate.every_steps=0")
        learner = run.learner()
        assert int(learner.rollouts) * learner.transitions <= 50_000
        runs.append(run.metrics["return"])
    return min(runs)


CASES = [
    Case(
        "dqn", "CartPole-v1", "return over 100 episodes after 37,000 actions, worst of 3 seeds", 475, "higher", cartpole
    )
]
