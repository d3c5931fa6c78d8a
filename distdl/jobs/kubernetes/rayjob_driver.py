"""The driver of a RayJob: `python -m distdl.jobs.kubernetes.rayjob_driver ARGS` is `python -m distdl ARGS`, in one process.

Only bad input ends otherwise. KubeRay starts whatever failed again, with a new cluster each time and without a look at the
exit code, except a job that was stopped by Ray's own interface: that one is over. So the driver stops itself, and what
reads the RayJob tells it as failed: `distdl jobs stop` never leaves that state behind, it suspends.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
import time

from distdl.errors import InputError

ENDS = "this job ends here: bad input"
"""How the last line of such a driver begins."""
WAIT_S = 60.0
"""Seconds in which Ray ends a process that asked for it."""


def main(argv: list[str]) -> int:
    """Runs the command. Returns its exit code, where the job is still there to have one."""
    sys.argv = ["distdl", *argv]
    code = 0
    try:
        runpy.run_module("distdl", run_name="__main__")
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    if code == InputError.exit_code and (job := own_job()):
        _end(job)
    return code


def own_job() -> str:
    """Ray's id of the job that this process is the driver of; '' where it is none's."""
    try:
        told = json.loads(os.environ["RAY_JOB_CONFIG_JSON_ENV_VAR"])["metadata"]["job_submission_id"]
    except (KeyError, ValueError, TypeError):
        return ""
    return str(told)


def _end(job: str) -> None:
    from distdl.jobs.ray_cluster import stop_submission

    print(f"{ENDS} fails the same way again, however often it is tried", flush=True)
    try:
        stop_submission(job)
        time.sleep(WAIT_S)
    except KeyboardInterrupt:  # Ray's SIGTERM
        pass
    except Exception as error:  # then it is tried again, as what failed for another reason
        print(f"Ray does not end the job: {type(error).__name__}: {error}", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
