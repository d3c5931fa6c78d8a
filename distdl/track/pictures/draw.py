"""The process that draws: `python -m distdl.track.pictures.draw RUN_DIR`. It reads the spool, writes PNGs into the run's
folder and sends them to the MLflow run: by step, and the newest of each as a file `pictures/NAME.png`.

Training does not wait for it, nor does the end of a run: it is a session of its own, at the lowest priority.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from distdl.track import store
from distdl.track.process import start
from distdl.track.run import LOG_NAME, file_lock, load
from distdl.track.run import SPOOL_NAME as SPOOL
from distdl.track.spool import Event, SpoolReader

FOLDER, LOCK = "pictures", ".drawing.lock"
CURVES = "learning curves"
PATIENCE_S = 60.0
"""Of one that waits for the one before it."""
KINDS = ("metrics", "evaluation", "picture")


def spawn(run_dir: Path) -> subprocess.Popen[bytes]:
    """Starts drawing what a run has spooled. May raise OSError."""
    with open(run_dir / LOG_NAME, "ab") as log:
        return start("distdl.track.pictures.draw", log, str(run_dir.resolve()))


def wait_for(run_dir: Path, timeout_s: float) -> None:
    """Until nothing is drawn of the run any more: for a machine that ends with the run."""
    end = time.monotonic() + timeout_s
    time.sleep(min(1.0, timeout_s))  # it takes its lock within a moment
    while time.monotonic() < end:
        with file_lock(run_dir / LOCK, wait=False) as free:
            if free:
                return
        time.sleep(0.2)


def draw(run_dir: Path, client: Any, run_id: str) -> list[str]:
    """Draws and sends what is not drawn yet; the names of the files."""
    from distdl.track.pictures import figures, looks

    events = [event for event in SpoolReader(run_dir / SPOOL).poll() if event["kind"] in KINDS]
    folder, made = run_dir / FOLDER, []
    folder.mkdir(exist_ok=True)
    for event in events:
        if event["kind"] != "picture" or (folder / _mark(event)).exists():
            continue
        before = [e for e in events if e.get("drawing") == event["drawing"] and e["step"] < event["step"]]
        for name, figure in looks.of_look(event, before) if "calls" in event else figures.of_picture(event):
            made.append(_keep(folder, name, figure, client, run_id, event["step"]))
        (folder / _mark(event)).touch()
    steps = [event["step"] for event in events if event["kind"] != "picture"]
    if steps and (curves := figures.learning_curves(events)):
        made.append(_keep(folder, CURVES, curves, client, run_id, max(steps)))
    for file in sorted(set(made)):
        client.log_artifact(run_id, str(folder / file), FOLDER)
    return made


def _keep(folder: Path, name: str, figure: Any, client: Any, run_id: str, step: int) -> str:
    """Writes a figure as the newest of its name, and sends it as that of its step. The file's name."""
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    file = f"{name.replace(' ', '_')}.png"
    figure.savefig(folder / f".{file}", format="png")
    os.replace(folder / f".{file}", folder / file)
    client.log_image(run_id, np.asarray(canvas.buffer_rgba())[..., :3], key=name, step=step, synchronous=True)
    return file


def _mark(event: Event) -> str:
    return f".{event['drawing']}-{event.get('split')}-{event['step']}".replace("/", "_")


def main(arguments: list[str]) -> int:
    """Exit code 0, or 1 where another one is at it, or the store did not take them."""
    run_dir = Path(arguments[0])
    if hasattr(os, "nice"):
        os.nice(19)
    store.set_environment()
    os.environ.setdefault("MPLBACKEND", "Agg")
    os.umask(~run_dir.resolve().parent.stat().st_mode & 0o777 | 0o002)
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        with file_lock(run_dir / LOCK, wait=False) as alone:
            if alone:
                return _draw_alone(run_dir)
        time.sleep(0.5)
    return 1


def _draw_alone(run_dir: Path) -> int:
    stamp = time.strftime("%Y-%m-%d %H:%M:%S")
    try:
        info = load(run_dir)
        if info is None or not info.mlflow_run_id:
            return 1
        from mlflow import MlflowClient

        client = MlflowClient(tracking_uri=info.tracking_uri)
        run = client.get_run(info.mlflow_run_id)
        if store.artifacts_elsewhere(info.tracking_uri, run.info.artifact_uri):
            return 1  # the log of the run says it already
        made = draw(run_dir, client, info.mlflow_run_id)
        print(f"{stamp} drawn: {', '.join(made) or 'nothing'}", flush=True)
        return 0
    except Exception as error:  # a picture is worth less than anything else of a run
        print(f"{stamp} the pictures were not drawn: {store.describe(error)}", flush=True)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
