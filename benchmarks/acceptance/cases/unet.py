"""Ronneberger et al. 2015: a pixel error of 0.0611 on ISBI 2012, whose test masks are secret. Here the last five of the
thirty labelled slices are held out. Everything called a cell has a pixel accuracy of 0.80 and a Dice coefficient of 0."""

from functools import cache

from benchmarks.acceptance import Bench, Case


@cache
def metrics(bench: Bench) -> dict[str, float]:
    raw = bench.raw("isbi2012_membrane")
    path = bench.data(
        "isbi2012", "segmentation", images=f"{raw}/image", masks=f"{raw}/label", tile=(128, 128), test_pictures=5
    )
    return bench.train("unet_isbi", f"data.path={path}").metrics


DATA = "ISBI 2012, 25 / 5 labelled slices"
CASES = [
    Case("unet", DATA, "pixel accuracy after 400 steps", 0.88, "higher", lambda bench: metrics(bench)["accuracy"]),
    Case("unet", DATA, "Dice of the membranes after 400 steps", 0.70, "higher", lambda bench: metrics(bench)["dice"]),
]
