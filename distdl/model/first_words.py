"""What a model that has just been trained can be asked, as commands."""

from __future__ import annotations

from typing import TYPE_CHECKING

from distdl.config.schema import Config
from distdl.errors import DistdlError

if TYPE_CHECKING:
    from distdl.data.asking.open import Ways


def first_words(config: Config, run: str) -> list[tuple[str, str]]:
    """(command, what it does) of whatever the family of a run answers or makes. `run`: its folder, as it is shown."""
    from distdl.data.asking.open import Ways
    from distdl.data.preparation import recorded
    from distdl.families import load_family, model_config
    from distdl.model.drawn import made_by

    family, model, path = load_family(config.model["family"]), model_config(config.model), config.data.path
    tells = family.tells(model)
    found = []
    if tells:
        raw = _of_files(Ways(family.asked(model), recorded(path)["columns"]))
        pictures = " --pictures FOLDER" if any(answer.kind in ("picture", "mask") for answer in tells.values()) else ""
        what = "answer new rows" if raw else "answer rows that are prepared"
        found.append((f"distdl predict {run} {'FILE' if raw else path}{pictures}", what))
    if made := made_by(family, model):
        more = {"text": " --text TEXT", "series": f" --data {path}"}.get(made, "")
        what = {"text": "let it write on", "series": "let series go on", "samples": "let it draw"}[made]
        found.append((f"distdl sample {run}{more}", what))
    return found


def _of_files(ways: Ways) -> bool:
    try:
        return ways.of_files
    except DistdlError:  # a tokenizer that cannot be loaded here: the run has ended well all the same
        return True
