"""Nothing in a foreign file executes, and what is wrong with it is told in one message."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ace_core.errors import DataError
from ace_core.interop.unpickle import VariableMetadata, unpickle

GOLDEN = Path(__file__).parents[1] / "golden" / "fme_full.tar"


class Call:
    """Pickles as a call of ``function``."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self.function, self.args = function, args

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.function, self.args


@pytest.mark.parametrize("legacy_file", [False, True], ids=["archive", "stream"])
@pytest.mark.parametrize(
    ("function", "name"),
    [
        (os.system, r"holds posix\.system"),
        (eval, "holds eval"),
        (getattr, "holds getattr"),
        (Path, r"holds pathlib\.Path"),
    ],
)
def test_what_could_execute_is_refused_by_name(
    function: Callable[..., Any], name: str, legacy_file: bool, tmp_path: Path
) -> None:
    path, trace = tmp_path / "bad.tar", tmp_path / "trace"
    content = {"stepper": {"config": {}}, "ema": {"decay": [Call(function, f"touch {trace}")]}}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy_file)
    with pytest.raises(DataError, match=name) as error:
        unpickle(path)
    assert "neither a tensor nor plain data" in str(error.value)
    assert not trace.exists()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_pickle_in_place_of_a_torch_file(tmp_path: Path) -> None:
    path, trace = tmp_path / "bad.tar", tmp_path / "trace"
    for protocol in range(6):
        path.write_bytes(pickle.dumps(Call(os.system, f"touch {trace}"), protocol=protocol))
        with pytest.raises(DataError):
            unpickle(path)
    assert not trace.exists()


def test_an_array_of_objects_is_no_plain_number(tmp_path: Path) -> None:
    torch.save({"a": np.array([object()], dtype=object)[:0].dtype}, tmp_path / "bad.tar")
    with pytest.raises(DataError, match=r"numpy\.dtype"):
        unpickle(tmp_path / "bad.tar")


@pytest.mark.parametrize(
    "value", [np.float64(0.5), np.float32(0.5), np.int64(-3), np.uint8(7), np.bool_(True), np.float64(np.inf)]
)
def test_numpy_numbers_become_pythons(value: Any, tmp_path: Path) -> None:
    torch.save({"a": value}, tmp_path / "ok.tar")
    found = unpickle(tmp_path / "ok.tar")["a"]
    assert found == value
    assert type(found) in (float, int, bool)


def test_big_endian_numbers(tmp_path: Path) -> None:
    torch.save({"a": np.array(1.5, dtype=">f8")[()].astype(">f8")}, tmp_path / "ok.tar")
    assert unpickle(tmp_path / "ok.tar")["a"] == 1.5


def test_the_peers_own_classes_are_stand_ins() -> None:
    content = unpickle(GOLDEN)
    assert content["stepper"]["dataset_info"]["variable_metadata"]["surface_temperature"] == VariableMetadata(
        "K", "surface temperature"
    )
    assert content["best_validation_loss"] == 0.5


def test_what_is_let_in_here_is_let_in_nowhere_else() -> None:
    unpickle(GOLDEN)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(GOLDEN, weights_only=True)


@pytest.mark.parametrize("keep", [0.0, 0.01, 0.3, 0.9, 0.999])
def test_truncated(keep: float, tmp_path: Path) -> None:
    whole, path = GOLDEN.read_bytes(), tmp_path / "cut.tar"
    path.write_bytes(whole[: int(keep * len(whole))])
    with pytest.raises(DataError, match="cannot be read as a checkpoint") as error:
        unpickle(path)
    assert len(error.value.problems) == 1


def test_a_flipped_bit_in_a_tensor(tmp_path: Path) -> None:
    path = tmp_path / "flipped.tar"
    with zipfile.ZipFile(GOLDEN) as archive:
        largest = max(archive.infolist(), key=lambda i: i.file_size)
    data = bytearray(GOLDEN.read_bytes())
    data[largest.header_offset + 200] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"checksum|cannot be read"):
        unpickle(path)


@pytest.mark.parametrize("content", [b"", b"stepper: {}\n", b"PK\x03\x04 nothing", bytes(range(256)) * 4])
def test_other_files(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(content)
    with pytest.raises(DataError, match="cannot be read as a checkpoint"):
        unpickle(tmp_path / "x.tar")


def test_no_file(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent.tar"):
        with pytest.raises(DataError, match="no such checkpoint"):
            unpickle(path)
