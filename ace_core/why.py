"""``ace why``: the lineage of a result as text, read from the result, its folder, and the folders of what it was made of.

What a run has recorded is compared with what lies there now: a file that was changed since, or another version of the code, is said.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from ace_core.errors import DataError, fail
from ace_core.lineage import (
    COMPLETE,
    CONFIG,
    RUN,
    fingerprint,
    from_attributes,
    made_by,
    read_json,
    read_record,
    run_folder,
)
from ace_core.provenance import code_hash, sha256_file, sha256_of

ARM, DATASET = "arm", "dataset.yaml"
_ELSEWHERE = "runs/rebuilt"
_SHORT = 12  # letters of a hash that are shown


def lines(path: Path) -> list[str]:
    """The lineage of a file or folder. Raises :class:`DataError` for what is not ours."""
    attributes = _attributes(path)
    folder, made = _made(path, attributes)
    out = [str(path)]
    if made is None:
        return out + _facts(_checkpoint(path) or _bare(path, attributes))
    facts = dict(_run(made, folder))
    facts["content"] = f"sha256 {sha256_file(path)[:_SHORT]}" if folder is None else _content(path, folder)
    if "in_sample" in attributes:
        facts["in-sample"] = " ".join(str(attributes[k]) for k in ("in_sample", "in_sample_times") if k in attributes)
    facts |= _software(made)
    plain = made["configuration"] if folder is None else read_json(folder / CONFIG)
    if plain is not None:
        facts["configuration"] = f"sha256 {sha256_of(plain)[:_SHORT]}, shown by ace why --configuration"
    facts["rebuild"] = _command(path, folder, made)
    return out + _facts(facts) + _sources(made, "  ", set())


def configuration_of(path: Path) -> str:
    """The configuration of the run that made ``path``, as YAML. Raises :class:`DataError`."""
    folder, made = _made(path, _attributes(path))
    if made is None:
        raise _foreign(path)
    if folder is None:
        plain = made["configuration"]
    else:
        plain = yaml.safe_load((folder / (DATASET if made["stage"] == "prepare" else CONFIG)).read_text())
    return yaml.safe_dump(plain, sort_keys=False)


def _made(path: Path, attributes: Mapping[str, Any]) -> tuple[Path | None, dict[str, Any] | None]:
    """The folder of the run that made it, if that is where it lies, and what is recorded of the run: there or in the file."""
    if not path.exists():
        raise fail(DataError, str(path), "no such file or folder", "a result of a stage", "check the path")
    folder = run_folder(path)
    if folder is not None and _of(path, folder):
        return folder, made_by(path)
    return None, from_attributes(attributes)


def _of(path: Path, folder: Path) -> bool:
    """Whether the run in the folder may have written the path: not what somebody laid there later."""
    from ace_core.training.checkpoint import of_resuming

    record, name = read_record(folder), path.absolute().relative_to(folder.absolute()).as_posix()
    if record is None or path.is_dir() or name in (COMPLETE, CONFIG, RUN) or of_resuming(path.name):
        return True
    return any(name == output or name.startswith(f"{output}/") for output in record["outputs"]) or name == DATASET


def _attributes(path: Path) -> dict[str, Any]:
    """Of a netCDF file, or of the first one in a folder; none of anything else."""
    import xarray as xr

    files = sorted(path.glob("*.nc"))[:1] if path.is_dir() else [path]
    for file in files:
        try:
            with xr.open_dataset(file, engine="netcdf4", decode_cf=False) as ds:
                return dict(ds.attrs)
        except (OSError, ValueError):
            pass
    return {}


def _bare(path: Path, attributes: Mapping[str, Any]) -> dict[str, str]:
    """Of a file of ours that was carried away from its folder and says little itself."""
    known = {
        k: str(v) for k, v in attributes.items() if k.startswith("in_sample") or k in ("title", "checkpoint", "data")
    }
    if "in_sample" not in known:
        raise _foreign(path)
    return known | {"made by": "a run whose folder this file is not in; it does not say more"}


def _checkpoint(path: Path) -> dict[str, str] | None:
    """Of a checkpoint outside its run's folder: what it says itself."""
    from ace_core.calendar import format_time
    from ace_core.training.checkpoint import load, load_emulator

    if path.suffix != ".tar":
        return None
    content, emulator = load(path), load_emulator(path)
    times = [" .. ".join(format_time(t, emulator.info.calendar) for t in span) for span in emulator.info.training_times]
    return {
        "made by": "a training or an import whose folder this file is not in",
        "content": f"sha256 {sha256_file(path)[:_SHORT]}, format {content['format_version']}",
        "emulator": f"{emulator.config.step.type}, {emulator.n_parameters} parameters, {emulator.info.grid.describe()}",
        "trained on": ", ".join(times) or "times that it does not say",
    }


def _foreign(path: Path) -> DataError:
    found = "is in no stage's folder, and says nothing of where it comes from"
    return fail(
        DataError, str(path), found, "a result of `ace`", "give a file that a stage has written, or a stage's folder"
    )


# --- facts


def _facts(facts: Mapping[str, str], indent: str = "  ") -> list[str]:
    return [f"{indent}{name:<14} {text}" for name, text in facts.items()]


def _run(made: Mapping[str, Any], folder: Path | None) -> Iterator[tuple[str, str]]:
    state = ""
    if folder is not None:
        state = ", complete" if read_record(folder) is not None else ", not complete: it is running, or was interrupted"
    key = f", run {made['key'][:_SHORT]}" if "key" in made else ""
    yield "made by", f"{_verb(made['stage'])}{key}{state}"
    if folder is not None:
        yield "folder", str(folder)
    if "seconds" in made:
        ranks = f" on {made['ranks']} ranks" if made.get("ranks", 1) > 1 else ""
        yield "took", f"{made['seconds']:g} s{ranks}"


def _software(made: Mapping[str, Any]) -> dict[str, str]:
    out = {}
    if "source" in made:
        out["source"] = made["source"]
    if "code_sha256" in made:
        code = made["code_sha256"]
        # Data sets are named by the code that decides their numbers only, which is part of all.
        same = (
            ""
            if made["stage"] == "prepare"
            else ", the version here"
            if code == code_hash()
            else f", another version than here ({code_hash()[:_SHORT]})"
        )
        out["code"] = f"sha256 {code[:_SHORT]}, commit {made.get('git_sha', 'unknown')[:_SHORT]}{same}"
    if "versions" in made:
        out["software"] = ", ".join(f"{k} {v}" for k, v in sorted(made["versions"].items()))
    return out


def _verb(stage: str) -> str:
    return {"prepare": "ace data prepare", ARM: "a leg of ace study"}.get(stage, f"ace {stage}")


def _content(path: Path, folder: Path) -> str:
    """What lies there, beside what the run has written."""
    record = read_record(folder)
    if path.is_file():
        now = sha256_file(path)
        written = {} if record is None else record["outputs"]
        was = written.get(path.absolute().relative_to(folder.absolute()).as_posix())
        said = ", as written" if was == now else f", CHANGED since: it was {was[:_SHORT]}" if was else ""
        return f"sha256 {now[:_SHORT]}{said}"
    if record is None:
        return "unknown until it is complete"
    if record["stage"] == "prepare":
        return f"{record['key'][:_SHORT]}, {len(record['outputs'])} stores and files; ace data verify reads them"
    wrong = [n for n, h in record["outputs"].items() if not (folder / n).is_file() or sha256_file(folder / n) != h]
    state = f"CHANGED or missing: {', '.join(wrong)}" if wrong else "all as written"
    return f"{len(record['outputs'])} files, {state}"


def _command(path: Path, folder: Path | None, made: Mapping[str, Any]) -> str:
    """What makes it anew, in another folder."""
    there = Path(str(made.get("working_directory", ".")))
    go = f"cd {shlex.quote(str(there))} && " if made.get("working_directory") not in (None, str(Path.cwd())) else ""
    stage = made["stage"]
    if stage == ARM:
        return "by the study that it is part of"
    if folder is None:
        return f"{go}ace why {shlex.quote(str(path.absolute()))} --configuration > {stage}.yaml && {_verb(stage)} {stage}.yaml --root {_ELSEWHERE}"
    config = folder.absolute() / (DATASET if stage == "prepare" else CONFIG)
    ranks = made.get("ranks", 1)
    start = _verb(stage) if ranks == 1 else f"torchrun --nproc-per-node {ranks} -m ace_core.cli {stage}"
    chosen = (read_json(config) or {}).get("experiment_dir")
    override = f" --override experiment_dir={_ELSEWHERE}" if chosen else ""
    return f"{go}{start} {shlex.quote(str(config))} --root {_ELSEWHERE}{override}"


def _sources(made: Mapping[str, Any], indent: str, seen: set[str]) -> list[str]:
    """What the run read, inputs of one run together, each with its own lineage; what was told already is not told again."""
    inputs: Mapping[str, Any] = made.get("inputs", {})
    out, runs = [], dict[str, dict[str, Any]]()
    for key, one in inputs.items():
        run = one.get("made_by")
        runs.setdefault(run["key"] if run else f"/{key}", {})[key] = one
    for run_key, of_run in runs.items():
        for key, one in of_run.items():
            out.append(f"{indent}{key}: {one['path']}")
            out.append(f"{indent}  content      {one['content'].partition('/')[0][:_SHORT]}, {_now(one)}")
        run = next(iter(of_run.values())).get("made_by")
        if run is None:
            out.append(f"{indent}  made by      unknown: it is in no folder of a stage")
            continue
        if run_key in seen:
            out.append(f"{indent}  made by      {_verb(run['stage'])}, run {run_key[:_SHORT]}, as above")
            continue
        seen.add(run_key)
        folder = run_folder(Path(next(iter(of_run.values()))["path"]))
        there = folder if folder is not None and (made_by(folder) or {}).get("key") == run_key else None
        facts = dict(_run(run, there)) | _software(run)
        if there is not None:
            facts["rebuild"] = _command(there, there, run)
        out += [f"{indent}  {name:<12} {text}" for name, text in facts.items()]
        out += _sources(run, f"{indent}    ", seen)
    return out


def _now(one: Mapping[str, Any]) -> str:
    path = Path(one["path"])
    if not path.exists():
        return "GONE since"
    return "unchanged" if fingerprint(path) == one["content"] else "CHANGED since"
