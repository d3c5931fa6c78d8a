"""Draws how the devices of the family `analog` answer to pulses: python -m benchmarks.analog_update [PICTURE.png]

Weights of some devices of each kind through pulses up and down, one after the other, from the very function that training
moves them by; a dashed line has neither noise nor spread. Needs matplotlib.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from distdl.families.analog.devices import DEVICES, update_curve

DRAWN = {
    "ecram": ("lithium ECRAM", 900),
    "ecram_oxide": ("metal-oxide ECRAM", 7500),
    "memtransistor": ("memtransistor", 300),
}
"""Device -> its name and the pulses that go through most of its range."""


def draw(path: Path, devices: int = 6) -> None:
    """A panel for each device, as a picture of the format that the path's suffix names."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.4), layout="constrained")
    panels = figure.subplots(1, len(DRAWN), sharey=True)
    for panel, (device, (title, pulses)) in zip(panels, DRAWN.items()):
        ideal = replace(DEVICES[device], noise=0, spread=0, spread_bounds=0, skew=0)
        every = max(1, pulses // 300)  # a picture has no more points across
        sent = range(0, 2 * pulses + 1, every)
        panel.plot(sent, update_curve(DEVICES[device], pulses, devices, every).numpy(), linewidth=0.8)
        panel.plot(sent, update_curve(ideal, pulses, 1, every).numpy(), "k--", linewidth=1.2)
        panel.axvline(pulses, color="0.7", linewidth=0.8)
        panel.set_title(title)
        panel.set_xlabel(f"pulse ({pulses:,} up, then {pulses:,} down)")
    panels[0].set_ylabel("weight (conductance less reference)")
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    draw(Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent.parent / "docs" / "analog_update.png"))
