"""Where a result comes from: what it has read, by content, and what it says of itself.

Every stage leaves its :func:`origin` in its folder (``run.json``), and files that may be carried away bear the same as attributes
(:func:`attributes`): ``ace why`` reads both.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from ace_core.provenance import canonical_json, code_hash, git_sha, sha256_file, sha256_of, versions

# Of a stage's folder: written last; its configuration with every default; what it is and was made of.
COMPLETE, CONFIG, RUN = "complete.json", "config.json", "run.json"
# Inputs come from outside the run, so a stage's key holds their content in place of their path.
PATH_KEYS = (
    "data_path",
    "path",
    "checkpoint_path",
    "weights_path",
    "resume_ema_ckpt_path",
    "resume_optimizer_ckpt_path",
    "existing_dir",
    "resume_results_dir",
    "mixture_of_experts_path",
    "fine_coordinates_path",
    "static_inputs",
    "global_means_path",
    "global_stds_path",
    "reference",
    "reference_data",
    "time_mean_reference_data",
    "monthly_reference_data",
    "checkpoints",
    "pair",
)
_TABLES = ("reference", "checkpoints", "static_inputs")  # whose values are paths, whatever their keys
_NEEDED = {"stage", "configuration", "inputs", "code_sha256", "versions"}


def fingerprint(path: Path) -> str:
    """What a path holds: a file's sha256; inside a prepared data set its content hash; for any other folder the names,
    sizes and times of its files (its bytes may be terabytes)."""
    for parent in (path, *path.parents):
        record = read_record(parent)
        if record is not None and record["stage"] == "prepare":
            return f"{record['key']}/{path.relative_to(parent).as_posix()}"
    if path.is_file():
        stat = path.stat()
        return _hash_of_file(path, stat.st_size, stat.st_mtime_ns, stat.st_ino)
    return sha256_of(sorted(_entries(path)))


def _entries(root: Path) -> Iterator[tuple[str, int, int]]:
    """Name, size and time of every file in a folder, also behind links: a store may lie on several disks."""
    seen: set[str] = set()
    for folder, below, names in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:  # there already, or a link that leads back
            below.clear()
            yield os.path.relpath(folder, root), 0, 0
            continue
        seen.add(real)
        below.sort()
        for name in names:
            file = Path(folder) / name
            try:
                stat = file.stat()
            except FileNotFoundError:  # a link to nothing (an editor's lock), or another process has just removed it
                continue
            yield os.path.relpath(file, root), stat.st_size, stat.st_mtime_ns


@lru_cache(maxsize=256)
def _hash_of_file(path: Path, _size: int, _time: int, _inode: int) -> str:
    # A stage asks for its checkpoint's hash several times: for its key, for its record, for every file it writes.
    return sha256_file(path)


def read_record(directory: Path) -> dict[str, Any] | None:
    """What the ``complete.json`` of a folder says, None if there is none of ours."""
    record = read_json(directory / COMPLETE)
    return record if record is not None and {"stage", "key", "outputs", "summary"} <= set(record) else None


def read_json(path: Path) -> dict[str, Any] | None:
    """A mapping, None if the file is not there or holds none."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def by_content(value: Any, seen: dict[str, str], key: str = "") -> Any:
    """A configuration in plain data with every path replaced by what it holds, which is also put into ``seen``."""
    if isinstance(value, dict):
        return {k: by_content(v, seen, _role(k, v, key)) for k, v in value.items()}
    if isinstance(value, list):
        return [by_content(v, seen, key) for v in value]
    return _content(value, seen) if _is_path(value, key) else value


def _content(path: str, seen: dict[str, str]) -> str:
    # Of a store that we have not prepared it takes a look at each of its files, which may be a million.
    if path not in seen:
        seen[path] = fingerprint(Path(path))
    return seen[path]


def inputs(plain: Mapping[str, Any], seen: dict[str, str]) -> dict[str, dict[str, Any]]:
    """Every path that a configuration names: dotted key -> its absolute ``path``, its ``content``, and, if a run of ours has made it,
    ``made_by``: that run's stage and key, with its own inputs and so on down to the data."""
    found = {}
    for key, text in _paths(plain):
        path = Path(text)
        if path.exists():
            made = made_by(path)
            found[key] = {
                "path": str(path.absolute()),
                "content": _content(text, seen),
                **({"made_by": made} if made else {}),
            }
    return found


def run_folder(path: Path) -> Path | None:
    """The folder of the stage that a path is, or is in."""
    for folder in (path, *path.absolute().parents):
        if (read_json(folder / RUN) or {}).keys() >= {"stage", "key"} or read_record(folder) is not None:
            return folder
    return None


def made_by(path: Path) -> dict[str, Any] | None:
    """Stage, key and :func:`origin` of the run in whose folder a path is; None if there is none."""
    folder = run_folder(path)
    if folder is None:
        return None
    record = read_record(folder)
    known = (read_json(folder / RUN) or {}) | {k: record[k] for k in ("stage", "key") if record is not None}
    if known["stage"] == "prepare":
        known |= _of_prepared(folder)
    return {k: known[k] for k in (*_RUN, "source", *_ORIGIN) if k in known}


_RUN = ("stage", "key", "ranks", "seconds")
_ORIGIN = ("inputs", "code_sha256", "git_sha", "versions", "working_directory")


def _of_prepared(folder: Path) -> dict[str, Any]:
    """What stores say of the code that wrote them."""
    for store in sorted(folder.glob("native/**/zarr.json")):
        attributes = (read_json(store) or {}).get("attributes", {})
        if "code_sha256" in attributes:
            return {k: attributes[k] for k in ("source", *_ORIGIN) if k in attributes}
    return {}


def _role(key: str, value: Any, above: str) -> str:
    """What decides whether a value is a path: its key, or that of the table it stands in. A reference is a file by its label, or a
    section that names data."""
    return above if above in _TABLES and isinstance(value, str) else key


def _is_path(value: Any, key: str) -> bool:
    # What is behind a URL is taken not to change.
    return isinstance(value, str) and key in PATH_KEYS and "://" not in value


def _paths(value: Any, key: str = "", dotted: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for k, v in value.items():
            yield from _paths(v, _role(k, v, key), f"{dotted}.{k}".lstrip("."))
    elif isinstance(value, list):
        for i, v in enumerate(value):
            yield from _paths(v, key, f"{dotted}[{i}]")
    elif _is_path(value, key):
        yield dotted, value


def origin(plain: Mapping[str, Any], seen: dict[str, str]) -> dict[str, Any]:
    """What decides a result besides its configuration ``plain``, as plain data. seen: path -> content, of those that are known already."""
    return {
        "inputs": inputs(plain, seen),
        "code_sha256": code_hash(),
        "git_sha": git_sha(),
        "versions": versions(),
        "working_directory": str(Path.cwd()),
    }


def attributes(stage: str, plain: Mapping[str, Any], directory: Path) -> dict[str, str]:
    """For a file of ``stage``, configured by ``plain``: all that :func:`from_attributes` needs. directory: the stage's, whose record of what
    was read is taken, if it has one. No date, so that the same run writes the same bytes."""
    known = read_json(directory / RUN) or {}
    made = {k: known[k] for k in _ORIGIN} if known.keys() >= set(_ORIGIN) else origin(plain, {})
    facts = {"stage": stage, "configuration": plain, **made}
    out = {k: v if isinstance(v, str) else canonical_json(v) for k, v in facts.items()}
    out["history"] = f"ace {stage}, commit {out['git_sha']}"
    return out | {"rebuild": f"ace why FILE --configuration > {stage}.yaml; ace {stage} {stage}.yaml"}


def from_attributes(attrs: Mapping[str, Any]) -> dict[str, Any] | None:
    """The inverse of :func:`attributes`; None for a file that does not bear them."""
    texts = {k: str(v) for k, v in attrs.items()}
    if not set(texts) >= _NEEDED:
        return None
    try:
        return texts | {k: json.loads(texts[k]) for k in ("configuration", "inputs", "versions")}
    except ValueError:
        return None
