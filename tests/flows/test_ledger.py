"""Nights as pure functions: what is found, in which order, within which time, what counts as worse, what the leaderboard says."""

from __future__ import annotations

import json
import math
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from ace_core.errors import ConfigError, DataError
from ace_core.evaluation.leaderboard import (
    CONDITIONS,
    NETCDF,
    NOISE_FLOOR,
    PAGE,
    TOLERATED,
    Evaluation,
    Score,
    alert_text,
    ranked,
    regressions,
    score_of,
    write,
)
from ace_core.netcdf import write_netcdf
from ace_core.provenance import sha256_file, sha256_of, write_json
from ace_core.training.checkpoint import BEST, BEST_INFERENCE, RESUME, importance, of_resuming
from tasks.ledger import (
    Seen,
    durations,
    entries,
    find_checkpoints,
    fits,
    key_of,
    learn,
    look,
    pending,
    record,
)

ROOT = Path("/runs")


def one(
    n: int, score: float | None, modified: float, *, name: str = BEST, noise: float = 0.0, root: Path = ROOT
) -> Evaluation:
    sha = sha256_of(n)
    by_variable = {"a": score, "b": score}
    path = str(root / f"train-{n}" / name)
    own = Score(by_variable, noise, TOLERATED)
    return Evaluation(sha256_of([n, "e"]), "e", sha, (path,), modified, f"train-{n}", n, 100.0 + n, 2.0, own, f"/e/{n}")


# --- what is found, and what comes first


def test_names_that_trainings_give_their_checkpoints() -> None:
    kinds = [BEST_INFERENCE, BEST, "ema_ckpt_0003.tar", "ckpt_0012.tar"]
    assert [importance(n) for n in kinds] == [0, 1, 2, 3]
    assert importance("best_inference_ckpt_0003.tar") == 3
    for name in (RESUME, "ckpt.1.tar", "ckpt.damaged.tar", ".best_ckpt.tar.1f.tmp", "best_ckpt.tar.bak"):
        assert importance(name) is None
    assert not any(of_resuming(n) for n in kinds)


def test_every_content_is_next_once_the_most_important_first(tmp_path: Path) -> None:
    # name: (content, time)
    files = {
        "old/best_ckpt.tar": (b"1", 10),
        "old/ckpt_0001.tar": (b"2", 5),
        "old/ckpt_0002.tar": (b"3", 6),
        "new/best_ckpt.tar": (b"4", 20),
        "new/best_inference_ckpt.tar": (b"1", 21),  # what old/best_ckpt.tar holds: the more important name counts
        "new/ema_ckpt_0002.tar": (b"5", 19),
        "new/ckpt.tar": (b"6", 22),
        "new/data.zarr/best_ckpt.tar": (b"7", 22),
        "copy/best_ckpt.tar": (b"4", 30),
    }
    for name, (content, modified) in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
        os.utime(tmp_path / name, (modified, modified))
    found = find_checkpoints([tmp_path, tmp_path / "old"])
    seen, problems = look(found)
    assert (len(found), len(seen), problems) == (7, 7, [])
    todo = pending(seen, "e", {})
    assert [p.checkpoint.relative_to(tmp_path).as_posix() for p in todo] == [
        "new/best_inference_ckpt.tar",
        "new/best_ckpt.tar",
        "new/ema_ckpt_0002.tar",
        "old/ckpt_0002.tar",
        "old/ckpt_0001.tar",
    ]
    assert todo[1].modified == 20  # of the original, not of the copy
    assert todo[0].sha256 == sha256_file(tmp_path / "old" / "best_ckpt.tar")
    known = {key_of(todo[0].sha256, "e"): one(1, 1.0, 1)}
    assert pending(seen, "e", known) == todo[1:]
    assert pending(seen, "other", known) == todo
    with pytest.raises(ConfigError, match="no such folder"):
        find_checkpoints([tmp_path, tmp_path / "gone"])


def test_a_checkpoint_that_cannot_be_read_hides_no_other(tmp_path: Path) -> None:
    (tmp_path / "b" / "best_ckpt.tar").mkdir(parents=True)  # no file, whoever asks
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "best_ckpt.tar").write_bytes(b"fine")
    found = find_checkpoints([tmp_path])
    seen, (problem,) = look([*found, tmp_path / "deleted" / "best_ckpt.tar"])
    assert [s.path for s in seen] == [tmp_path / "c" / "best_ckpt.tar"]
    assert (Path(problem.where), problem.found) == (tmp_path / "b" / "best_ckpt.tar", "cannot be read (Is a directory)")


def test_what_is_as_it_was_is_not_read_again(tmp_path: Path) -> None:
    path, remembered = tmp_path / "best_ckpt.tar", tmp_path / "hashes.json"

    def write(content: bytes, modified: int) -> str:
        other = tmp_path / "other"
        other.write_bytes(content)
        os.utime(other, (modified, modified))
        other.replace(path)
        return sha256_file(path)

    first = write(b"one", 5)
    assert [s.sha256 for s in look([path], remembered)[0]] == [first]
    # What was remembered is what is told, which shows that nothing was read.
    known = json.loads(remembered.read_text())
    known[str(path)][-1] = "as remembered"
    write_json(remembered, known)
    assert [s.sha256 for s in look([path], remembered)[0]] == ["as remembered"]
    assert [s.sha256 for s in look([path])[0]] == [first]
    second = write(b"two", 5)  # of the same size and time
    assert [s.sha256 for s in look([path], remembered)[0]] == [second]
    path.unlink()
    assert look([path], remembered) == ([], [])
    assert json.loads(remembered.read_text()) == {}
    remembered.write_text("cut")
    third = write(b"three", 7)
    assert [(s.sha256, s.modified) for s in look([path], remembered)[0]] == [(third, 7.0)]


def test_an_evaluation_is_begun_if_the_median_of_earlier_ones_fits() -> None:
    assert fits(1e9, [1e9], 0)  # no limit
    assert fits(50, [10, 10, 1000], 60)
    assert not fits(51, [10, 10, 1000], 60)
    assert fits(50, [8, 12], 60)
    assert fits(60, [], 60)
    assert not fits(61, [], 60)
    short, long = one(1, 1.0, 1), replace(one(2, 1.0, 2), evaluation="f", seconds=99.0)
    assert durations([short, long], "e") == [2.0]
    assert durations([short, long], "new") == [2.0, 99.0]


# --- scores


def evaluated(folder: Path, scores: dict[str, float | None], relative: dict[str, float] | None = None) -> Path:
    """A finished evaluation's folder. relative: standard error of a step's RMSE over samples, over that RMSE."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "scores.json", scores)
    if relative is not None:
        variables = {}
        for v, r in relative.items():
            variables[f"weighted_rmse-{v}"] = ("forecast_step", np.array([0.0, 1.0, 3.0]))
            variables[f"weighted_rmse_stderr-{v}"] = ("forecast_step", np.array([0.0, r, 3.0 * r]))
        write_netcdf(xr.Dataset(variables), folder / "mean_norm_diagnostics.nc")
    return folder


def test_score_and_noise_by_hand(tmp_path: Path) -> None:
    norm = {"time_mean_norm/rmse/a": 0.2, "time_mean_norm/rmse/b": 0.4, "time_mean_norm/rmse/channel_mean": 9.0}
    alone = score_of(evaluated(tmp_path / "1", norm))
    assert alone.total == pytest.approx(0.3, rel=1e-15)
    assert (alone.noise, alone.noise_from) == (pytest.approx(0.015, rel=1e-15), TOLERATED)
    # Two standard errors of a difference: 2 sqrt(2) x 0.3 x mean(0.1, 0.2).
    several = score_of(evaluated(tmp_path / "2", norm, {"a": 0.1, "b": 0.2}))
    assert (several.noise, several.noise_from) == (pytest.approx(2 * math.sqrt(2) * 0.3 * 0.15, rel=1e-12), CONDITIONS)
    sure = score_of(evaluated(tmp_path / "3", norm, {"a": 0.001, "b": 0.001}))
    assert (sure.noise, sure.noise_from) == (pytest.approx(0.015), TOLERATED)
    # In units of a and b their standard deviations are 10 and 100: floors of 1 and 20 are 0.1 and 0.2 of them.
    units = {"time_mean/rmse/a": 2.0, "time_mean/rmse/b": 40.0, "noise_floor/floor/a": 1.0, "noise_floor/floor/b": 20.0}
    floor = score_of(evaluated(tmp_path / "4", norm | units, {"a": 0.1, "b": 0.2}))
    assert (floor.noise, floor.noise_from) == (pytest.approx(0.15, rel=1e-12), NOISE_FLOOR)
    del units["noise_floor/floor/b"]
    assert score_of(evaluated(tmp_path / "5", norm | units)).noise_from == TOLERATED
    none = score_of(evaluated(tmp_path / "6", {"mean/weighted_rmse/a": 1.0}))
    assert (none.by_variable, none.total) == ({}, math.inf)
    half = score_of(evaluated(tmp_path / "7", norm | {"time_mean_norm/rmse/b": None}))
    assert (half.known, half.total, half.over({"a", "b"})) == ({"a"}, 0.2, math.inf)


# --- what got worse


def names(found: list[Evaluation]) -> list[str]:
    return [r.worse.training for r in regressions(found, [ROOT])]


def test_worse_than_the_best_of_those_older_by_more_than_its_noise() -> None:
    found = [
        one(1, 1.0, 1, noise=0.1),
        one(2, 1.1, 2, noise=0.1),  # no more than the noise
        one(3, 0.5, 3, noise=0.05),
        one(4, 0.56, 4, noise=9.0),  # worse than 3, better than 1; its own noise is no excuse
        one(5, 0.52, 5),
        one(6, None, 6),  # blew up
        one(7, 9.0, 0.5, noise=0.1),  # the oldest of all
        one(8, 2.0, 3, noise=0.1),  # as old as 3, newer than 1
        one(9, 2.0, 9, name="ckpt_0001.tar"),  # another kind
        one(10, 2.0, 10, root=Path("/elsewhere")),
        replace(one(11, 2.0, 11), evaluation="another"),
        replace(one(12, 2.0, 12), finished=False),  # its training goes on
    ]
    assert names(found) == ["train-8", "train-4", "train-6"]
    by_name = {r.worse.training: r for r in regressions(found, [ROOT])}
    assert by_name["train-4"].better.training == "train-3"
    assert by_name["train-8"].better.training == "train-1"
    title, text = alert_text(by_name["train-4"])
    assert title == "train-4/best_ckpt.tar is worse than before: 0.56 after 0.5"
    assert "at most 0.05 higher (from: tolerance)" in text
    assert "Most changed: a (1.12 times), b (1.12 times)." in text
    assert "a (not finite)" in alert_text(by_name["train-6"])[1]


evaluations = st.lists(
    st.builds(
        lambda n, score, modified, noise, name: one(n, score, modified, noise=noise, name=name),
        st.integers(0, 10**6),
        st.one_of(st.none(), st.floats(0.01, 10)),
        st.integers(0, 8),
        st.floats(0, 2),
        st.sampled_from([BEST, BEST_INFERENCE]),
    ),
    unique_by=lambda e: e.key,
    max_size=9,
)


@given(evaluations, st.randoms(use_true_random=False), st.data())
def test_what_is_worse_depends_on_no_order_and_is_never_withdrawn(found: list[Evaluation], shuffle, data) -> None:  # type: ignore[no-untyped-def]
    everything = regressions(found, [ROOT])
    # By definition, of every pair.
    expected = {
        c.key
        for c in found
        for o in found
        if o.modified < c.modified
        and o.name == c.name
        and o.score.known
        and c.score.over(o.score.known) > o.score.total + o.score.noise
    }
    assert {r.worse.key for r in everything} == expected
    shuffled = list(found)
    shuffle.shuffle(shuffled)
    assert regressions(shuffled, [ROOT]) == everything
    fewer = data.draw(st.lists(st.sampled_from(found), unique_by=lambda e: e.key)) if found else []
    assert {r.worse.key for r in regressions(fewer, [ROOT])} <= expected


def test_a_training_that_goes_on_is_judged_when_it_ends(tmp_path: Path) -> None:
    ledger, training = tmp_path / "ledger", tmp_path / "runs" / "train-2"
    best, scores = training / "training_checkpoints" / BEST, {"time_mean_norm/rmse/a": 2.0}
    best.parent.mkdir(parents=True)
    best.write_bytes(b"one")
    write_json(training / "run.json", {"stage": "train", "key": "k"})
    before = replace(one(1, 1.0, 1, root=tmp_path / "runs"), score=Score({"a": 1.0}, 0.0, TOLERATED))
    entry = record(ledger, best, 5.0, "e", result_of(tmp_path / "1", sha256_file(best), scores))
    assert (entry.training, entry.finished) == ("train-2", False)
    known = learn(ledger, entries(ledger), look([best])[0])
    assert regressions([before, *known.values()], [tmp_path]) == []
    write_json(training / "complete.json", {})
    assert learn(ledger, known, []) == known  # of a content that is not there any more it will never be known
    learn(ledger, known, look([best])[0])
    assert [r.worse.sha256 for r in regressions([before, *entries(ledger).values()], [tmp_path])] == [entry.sha256]


def test_a_content_in_two_roots_is_in_both_series() -> None:
    a, b = Path("/runs/a"), Path("/runs/b")
    copied = one(2, 2.0, 2, root=a)
    copied = replace(copied, paths=(*copied.paths, str(b / "copy" / BEST)))
    found = [one(1, 1.0, 1, root=b), copied]
    assert regressions(found, [a]) == []
    assert [r.worse for r in regressions(found, [a, b])] == [copied]
    assert [r.worse for r in regressions(found, [ROOT])] == [copied]


# --- the leaderboard


def test_leaderboard_as_data_and_page(tmp_path: Path) -> None:
    found = [one(1, 1.0, 86400, noise=0.1), one(2, 0.5, 2 * 86400), one(3, None, 3 * 86400), one(4, 0.75, 4 * 86400)]
    rows = ranked(found, [ROOT], [found[0].sha256, found[3].sha256])
    assert [r.evaluation.training for r in rows] == ["train-2", "train-4", "train-1", "train-3"]
    assert [r.before for r in rows] == [1.0, 0.5, None, 0.5]
    assert [r.difference for r in rows] == [-0.5, 0.25, None, math.inf]
    assert [r.gone for r in rows] == [True, False, False, True]
    assert [r.regression is not None for r in rows] == [False, True, False, True]
    write(rows, [ROOT], tmp_path)
    first = {name: (tmp_path / name).read_bytes() for name in (NETCDF, PAGE)}
    write(ranked(found[::-1], [ROOT], [found[3].sha256, found[0].sha256]), [ROOT], tmp_path)
    assert {name: (tmp_path / name).read_bytes() for name in (NETCDF, PAGE)} == first
    assert sorted(p.name for p in tmp_path.iterdir()) == [PAGE, NETCDF]
    with xr.open_dataset(tmp_path / NETCDF) as ds:
        assert ds["rank"].values.tolist() == [1, 2, 3, 4]
        assert ds.training.values.tolist() == ["train-2", "train-4", "train-1", "train-3"]
        np.testing.assert_array_equal(ds.score, [0.5, 0.75, 1.0, np.nan])
        np.testing.assert_array_equal(ds.difference, [-0.5, 0.25, np.nan, np.nan])
        assert ds.regression.values.tolist() == [0, 1, 0, 1]
        assert ds.gone.values.tolist() == [1, 0, 0, 1]
        np.testing.assert_array_equal(ds.rmse.sel(variable="b"), [0.5, 0.75, 1.0, np.nan])
        assert ds.modified.values[0] == np.datetime64("1970-01-03T00:00:00")
    page = first[PAGE].decode()
    assert page.count("<tr class=off>") == 2
    assert page.index("train-2/best_ckpt.tar") < page.index("train-4/best_ckpt.tar")
    write([], [ROOT], tmp_path)
    with xr.open_dataset(tmp_path / NETCDF) as ds:
        assert ds.sizes["checkpoint"] == 0


# --- the ledger


def result_of(folder: Path, sha256: str, scores: dict[str, float | None]) -> dict[str, str]:
    evaluated(folder, scores)
    write_json(folder / "run.json", {"inputs": {"checkpoint_path": {"content": sha256}}, "seconds": 7.5})
    return {"directory": str(folder)}


def test_an_entry_is_of_what_was_read_and_stays(tmp_path: Path) -> None:
    ledger, checkpoint = tmp_path / "ledger", tmp_path / "train-1" / BEST
    scores: dict[str, float | None] = {"time_mean_norm/rmse/a": 0.5}
    checkpoint.parent.mkdir()
    checkpoint.write_bytes(b"replaced by now")
    first = record(ledger, checkpoint, 5.0, "e", result_of(tmp_path / "1", "cafe", scores))
    assert (first.sha256, first.modified, first.seconds, first.training) == ("cafe", 5.0, 7.5, "train-1")
    assert first.key == key_of("cafe", "e")
    assert first.epoch is None  # no checkpoint, whatever it is called
    assert entries(ledger) == {first.key: first}
    copy = tmp_path / "copy" / BEST
    assert record(ledger, copy, 9.0, "e", result_of(tmp_path / "2", "cafe", {})) == first
    other = record(ledger, copy, 9.0, "f", result_of(tmp_path / "2", "cafe", scores))
    known = learn(ledger, entries(ledger), [Seen(copy, "cafe", 9.0), Seen(copy, "beef", 9.0)])
    assert known[first.key].paths == (str(checkpoint), str(copy))
    assert known[other.key].paths == (str(copy),)
    assert entries(ledger) == known
    (ledger / "of an earlier version.json").write_text('{"checkpoint": "x", "sha256": "y", "result": {}}')
    (ledger / "cut.json").write_text('{"key": "cut", ')
    stale = json.loads((ledger / f"{first.key}.json").read_text())
    write_json(ledger / "copied.json", stale)
    assert entries(ledger) == known
    with pytest.raises(DataError, match="does not say what was evaluated"):
        record(ledger, copy, 9.0, "g", {"directory": str(tmp_path / "nothing")})
