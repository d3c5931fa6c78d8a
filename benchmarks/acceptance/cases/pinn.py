"""Raissi et al. 2019 report a relative L2 error of 6.7e-4 with 10,000 collocation points, after tens of thousands of L-BFGS
iterations. Theirs is the reference solution, too (burgers_shock.mat); training sees the equation and the edges alone."""

import torch

from benchmarks.acceptance import Bench, Case


def burgers(bench: Bench) -> float:
    import scipy.io

    path = bench.data("pde-burgers", "pde", equation="burgers", values=100, collocation=2000, near=0.3)
    learner = bench.train("pinn", f"data.path={path}", "evaluate.every_steps=0").learner()
    reference = scipy.io.loadmat(bench.raw("burgers/burgers_shock.mat"))
    x, t, u = (torch.from_numpy(reference[name].real) for name in ("x", "t", "usol"))  # (256, 1), (100, 1), (256, 100)
    points = torch.cartesian_prod(x[:, 0], t[:, 0])  # (25600, 2)
    with torch.no_grad():
        error = learner.net(points)[:, 0] - u.flatten()
    return float(error.norm() / u.norm())


CASES = [
    Case("pinn", "Burgers' equation", "relative L2 error in fp64, 4,000 L-BFGS iterations", 0.05, "lower", burgers)
]
