"""A model that Ray Serve itself serves, on a cluster that others keep: a RayService of KubeRay, or `serve deploy`.

    applications:
    - name: distdl
      import_path: distdl.serve.on_cluster:app
      args: {run: /distdl/runs/adult, checkpoint: best}
      deployments: [{name: distdl, num_replicas: 2}]

Each replica has its own copy of the model and answers HTTP as `distdl serve` does: the same addresses, the same words.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from distdl.errors import InputError, did_you_mean
from distdl.run.folder import find_run
from distdl.serve.app import App
from distdl.serve.replicas import NAME, Served
from distdl.serve.server import Here


@dataclass(frozen=True)
class Options:
    """What stands under `args` of the application."""

    run: str
    """The run's folder, as every node of the cluster sees it."""
    checkpoint: str = "latest"
    """latest, best, or a checkpoint's folder."""
    device: str = "cpu"
    """cpu or cuda; of that each replica takes what `num_gpus` of its deployment gives it."""
    max_batch: int = 256
    """Rows at a time."""
    wait_ms: float = 0.0
    """How long a batch waits for more rows."""
    max_body_mb: float = 16.0
    """Largest request in MiB."""
    unknown: str = "refuse"
    """refuse or answer rows with a word that training did not see and has no place for."""

    @staticmethod
    def of(args: Mapping[str, Any]) -> Options:
        """InputError: a key that is none, one that is missing, or a value that cannot be."""
        known = [field.name for field in fields(Options)]
        if wrong := [key for key in args if key not in known]:
            what = f"there is no argument '{wrong[0]}' of {NAME}"
            raise InputError(what, allowed=", ".join(known), fix=did_you_mean(wrong[0], known))
        if "run" not in args:
            raise InputError(f"{NAME} is not told which run it serves", fix="args: {run: /distdl/runs/NAME}")
        found = Options(**args)
        limits = {
            "device": found.device == "cpu" or found.device.startswith("cuda"),
            "max_batch": isinstance(found.max_batch, int) and found.max_batch >= 1,
            "wait_ms": isinstance(found.wait_ms, int | float) and 0 <= found.wait_ms <= 60_000,
            "max_body_mb": isinstance(found.max_body_mb, int | float) and 0 < found.max_body_mb <= 4096,
            "unknown": found.unknown in ("refuse", "answer"),
        }
        allowed = "cpu or cuda, 1 or more rows, 0 to 60000 ms, up to 4096 MiB, refuse or answer"
        if wrong := [name for name, fits in limits.items() if not fits]:
            raise InputError(f"{wrong[0]} is {getattr(found, wrong[0])!r}", allowed=allowed)
        return found


class Front:
    """A replica: what Ray Serve makes of it speaks HTTP."""

    def __init__(self, served: Served, most_bytes: int) -> None:
        answerer = served.answerer()
        self._schema, self._most_bytes = answerer.schema(), most_bytes
        self._here = Here(answerer, served.most_rows, served.wait_s)

    def __serve_build_asgi_app__(self) -> Any:
        """The application of this replica, by the name that Ray Serve asks for."""
        return App(self._here, self._schema, self._most_bytes, None).asgi  # of any name: a Service has several


def app(args: Mapping[str, Any]) -> Any:
    """The application that Ray Serve deploys. InputError: the arguments are wrong, or there is no such run."""
    from ray import serve

    options = Options.of(args)
    folder = find_run(options.run, ".")
    most_rows, wait_s = options.max_batch, options.wait_ms / 1000
    served = Served(str(folder.path.absolute()), options.checkpoint, options.device, most_rows, wait_s, options.unknown)
    deployment = serve.deployment(
        name=NAME,
        max_ongoing_requests=4096,  # a replica batches what waits
        ray_actor_options={"num_cpus": 1, "num_gpus": 1 if options.device.startswith("cuda") else 0},
        graceful_shutdown_timeout_s=60,
    )(serve.ingress()(Front))
    return deployment.bind(served, int(options.max_body_mb * 2**20))
