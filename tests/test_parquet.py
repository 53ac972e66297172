"""Data sets of Hugging Face on disk: parquet and Arrow files hold what a folder holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from encoded import picture

from compress.data import arrow
from compress.data.open_data import open_data
from compress.data.settings import from_toml, make
from compress.data.splits import Data
from compress.errors import BadInput, EmptyData
from compress.user import cache_folder
from compress.user.shard_paths import shards

pa = pytest.importorskip("pyarrow", reason="pyarrow is an extra")
pq = pytest.importorskip("pyarrow.parquet", reason="pyarrow is an extra")
OWN = make(normalize="none")
LAZY = make(normalize="none", memory_gb=1e-9, workers=2)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(cache_folder.CACHE, str(tmp_path / "cache"))
    return tmp_path / "cache"


def table(numbers: range, names: list[str] | None = None, **columns: Any) -> Any:
    """As the library `datasets` writes it."""
    content = {
        "image": [{"bytes": picture(i), "path": f"{i}.png"} for i in numbers],
        "label": [i % 3 for i in numbers],
        **columns,
    }
    features: dict[str, Any] = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": names or ["x", "y", "z"]}}
    return pa.table(content).replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})


def parquet(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(content, path, row_group_size=7)
    return path


@pytest.fixture
def hub(tmp_path: Path) -> Path:
    """A data set's folder as it is downloaded."""
    parquet(tmp_path / "set" / "data" / "train-00000-of-00002.parquet", table(range(40)))
    parquet(tmp_path / "set" / "data" / "train-00001-of-00002.parquet", table(range(40, 60)))
    parquet(tmp_path / "set" / "data" / "test-00000-of-00001.parquet", table(range(100, 115)))
    return tmp_path / "set"


@pytest.mark.parametrize(
    "columns",
    [
        {"label": [f"class {i % 3}" for i in range(20)]},
        {"label": [i % 3 + 0.5 for i in range(20)]},
        {"Class": ["x"] * 20, "id": list(range(20))},
    ],
)
def test_a_column_of_labels_that_are_no_numbers_is_not_passed_over(tmp_path: Path, columns: dict[str, Any]):
    content = pa.table({"image": [{"bytes": picture(i), "path": ""} for i in range(20)], **columns})
    with pytest.raises(
        BadInput, match=r"The column '(label|Class)' of .* is of type (string|double); needed are numbers of classes"
    ):
        open_data(str(parquet(tmp_path / "set.parquet", content)), settings=OWN)


def rows(data: Data) -> dict[bytes, int]:
    found = [(b.inputs[0], b.target) for part in (data.train, data.held_out) for b in part.batches(16)]
    return {x.numpy().tobytes(): int(y) for inputs, target in found for x, y in zip(inputs, target, strict=True)}


@pytest.mark.parametrize("settings", [OWN, LAZY], ids=["in memory", "read while running"])
def test_a_downloaded_data_set_is_what_its_folder_of_images_is(hub: Path, tmp_path: Path, settings: Any):
    data = open_data(hub, settings=settings)
    assert (len(data.test), data.spec.classes) == (15, ("x", "y", "z"))
    for i in range(60):
        (tmp_path / "images" / "xyz"[i % 3]).mkdir(parents=True, exist_ok=True)
        (tmp_path / "images" / "xyz"[i % 3] / f"{i}.png").write_bytes(picture(i))
    split = {"test": 0.02, "held_out": 0.02}
    folder = open_data(tmp_path / "images", settings=make(normalize="none", split=split))
    of_folder = rows(folder) | {
        x.numpy().tobytes(): int(y) for b in folder.test.batches(9) for x, y in zip(b.inputs[0], b.target, strict=True)
    }
    assert rows(data) == of_folder
    assert len(of_folder) == 60


def test_what_does_not_fit_into_memory_is_decoded_once(hub: Path, cache: Path):
    first = rows(open_data(hub, settings=LAZY))
    kept = {path: path.stat().st_mtime_ns for path in (cache / "parquet").iterdir()}
    assert len(kept) == 3
    assert rows(open_data(hub, settings=LAZY)) == first
    assert {path: path.stat().st_mtime_ns for path in (cache / "parquet").iterdir()} == kept
    parquet(hub / "data" / "train-00001-of-00002.parquet", table(range(200, 230)))
    assert len(rows(open_data(hub, settings=LAZY))) == 70


@pytest.mark.parametrize("form", ["new_stream", "new_file"])
def test_what_save_to_disk_wrote(tmp_path: Path, form: str):
    for part, numbers in (("train", range(30)), ("test", range(50, 60))):
        (tmp_path / "saved" / part).mkdir(parents=True)
        content = table(numbers)
        with (
            pa.OSFile(str(tmp_path / "saved" / part / "data-00000-of-00001.arrow"), "wb") as out,
            getattr(pa.ipc, form)(out, content.schema) as w,
        ):
            w.write_table(content)
    (tmp_path / "saved" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    data = open_data(tmp_path / "saved", settings=LAZY)
    assert (len(data.train) + len(data.held_out), len(data.test)) == (30, 10)
    assert len(rows(data)) == 30


def test_plain_columns_of_others_will_do(tmp_path: Path):
    content = pa.table({"jpg": [picture(i) for i in range(20)], "cls": pa.array([i % 2 for i in range(20)], pa.int16())})
    data = open_data(parquet(tmp_path / "x.parquet", content), settings=OWN)
    assert data.spec.classes == ("0", "1")


def test_pictures_alone_are_images_without_labels(tmp_path: Path):
    content = pa.table({"image": [picture(i) for i in range(20)]})
    assert not open_data(parquet(tmp_path / "x.parquet", content), settings=OWN).spec.labeled


def test_a_test_part_whose_labels_are_kept_back_is_left_out(hub: Path):
    parquet(hub / "data" / "test-00000-of-00001.parquet", table(range(9), label=[-1] * 9))
    data = open_data(hub, settings=OWN)
    assert any("test part of" in note and "no labels" in note for note in data.notes)


def test_columns_are_chosen_in_a_data_toml(tmp_path: Path):
    parquet(tmp_path / "x.parquet", table(range(20), fine=list(range(20)), other=[b"" for _ in range(20)]))
    with pytest.raises(BadInput, match="2 columns of pictures"):
        open_data(tmp_path / "x.parquet")
    (tmp_path / "data.toml").write_text('source = "x.parquet"\nnormalize = "none"\n[columns]\nimage = "image"\nlabel = "fine"\n')
    assert from_toml(tmp_path / "data.toml").columns.label == "fine"
    assert open_data(tmp_path / "data.toml").spec.classes == tuple(map(str, range(20)))


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"image": "imgae"}, "has no column 'imgae'; there are image"),
        ({"label": "text"}, "has values of type string; needed are numbers of classes"),
        ({"label": "holes"}, "has 1 empty row; needed"),
    ],
)
def test_columns_that_cannot_be_used(tmp_path: Path, columns: dict[str, str], said: str):
    content = table(range(20), text=["a"] * 20, holes=[None, *range(19)])
    with pytest.raises(BadInput, match=said):
        open_data(parquet(tmp_path / "x.parquet", content), settings=make(columns=columns))


def test_a_table_without_pictures(tmp_path: Path):
    with pytest.raises(BadInput, match="has no column of pictures among text"):
        open_data(parquet(tmp_path / "x.parquet", pa.table({"text": ["a", "b"]})))


def test_a_broken_picture_is_left_out_and_named(tmp_path: Path):
    content = table(range(40), image=[{"bytes": b"x" if i == 3 else picture(i), "path": f"{i}.png"} for i in range(40)])
    notes = open_data(parquet(tmp_path / "x.parquet", content), settings=OWN).notes
    assert any("3.png (UnidentifiedImageError" in note for note in notes)


def test_no_rows(tmp_path: Path):
    with pytest.raises(EmptyData, match="has no row"):
        open_data(parquet(tmp_path / "x.parquet", table(range(2)).slice(0, 0)))


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_file_that_is_cut_off_is_refused(tmp_path: Path, suffix: str, share: float):
    whole = parquet(tmp_path / "whole.parquet", table(range(30)))
    if suffix == "arrow":
        with pa.OSFile(str(whole), "wb") as out, pa.ipc.new_file(out, table(range(30)).schema) as written:
            written.write_table(table(range(30)))
    content = whole.read_bytes()
    cut = tmp_path / f"x.{suffix}"
    cut.write_bytes(content[: int(share * len(content))])
    with pytest.raises(BadInput, match=r"x\.(parquet|arrow) cannot be read"):
        open_data(cut)


def test_files_of_two_kinds_or_two_sets(tmp_path: Path):
    parquet(tmp_path / "a.parquet", table(range(20)))
    (tmp_path / "b.arrow").write_bytes(b"")
    with pytest.raises(BadInput, match="files of one kind"):
        shards(str(tmp_path / "{a.parquet,b.arrow}"))
    parquet(tmp_path / "b.parquet", table(range(20), label=["a"] * 20))
    with pytest.raises(BadInput, match="of other types than"):
        open_data(str(tmp_path / "{a,b}.parquet"))


def test_rows_that_are_one_large_entry_each_are_decoded_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    entry = pa.DictionaryArray.from_arrays(pa.array([0] * 64), pa.array([bytes(2**25)], pa.binary()))
    more = pa.StructArray.from_arrays([entry, entry, entry], names=["bytes", "a", "b"])
    asked, real = list[int](), pq.ParquetFile.iter_batches
    monkeypatch.setattr(pq.ParquetFile, "iter_batches", lambda self, rows, **how: asked.append(rows) or real(self, rows, **how))
    for name, column in (("plain", entry), ("struct", more)):
        path = tmp_path / f"{name}.parquet"
        pq.write_table(pa.table({"image": column, "label": [0] * 64}), path, compression="zstd", store_schema=False)
        with pytest.raises(BadInput, match="hold more than"):
            open_data(str(path))
    assert asked == [7, 2]


@pytest.mark.parametrize("kind", [pa.null(), pa.list_(pa.null(), 8), pa.struct([("bytes", pa.null())]), pa.int64()])
def test_a_column_that_is_no_picture_is_refused_by_its_type(tmp_path: Path, kind: Any):
    arrow_file(tmp_path / "a.arrow", pa.table({"image": pa.nulls(12, kind), "label": list(range(12))}), "stream", None)
    (tmp_path / "data.toml").write_text(f'source = "{tmp_path / "a.arrow"}"\n[columns]\nimage = "image"\n')
    with pytest.raises(BadInput, match=r"is of type .*; needed is one of bytes"):
        open_data(str(tmp_path / "data.toml"))


@pytest.mark.parametrize("source", ["digits", "folder"])
def test_columns_of_what_is_no_table_are_refused(tmp_path: Path, source: str):
    (tmp_path / "folder").mkdir()
    (tmp_path / "data.toml").write_text(f'source = "{source}"\n[columns]\nimage = "img"\n')
    with pytest.raises(BadInput, match=r"\[columns\] chooses among the columns of tables, and .* is none"):
        open_data(str(tmp_path / "data.toml"))


def test_lengths_that_lead_out_of_an_arrow_file_are_refused(tmp_path: Path):
    content = pa.table({"image": pa.array([picture(i) for i in range(20)], pa.binary()), "label": [i % 2 for i in range(20)]})
    path = tmp_path / "data-00000.arrow"
    with pa.OSFile(str(path), "wb") as out, pa.ipc.new_stream(out, content.schema) as written:
        written.write_table(content)
    offsets = content.column("image").chunk(0).buffers()[1].to_pybytes()[:84]
    whole = path.read_bytes()
    assert whole.count(offsets) == 1
    far = offsets[:12] + 18 * (2**31 - 1).to_bytes(4, "little")
    path.write_bytes(whole.replace(offsets, far))
    with pytest.raises(BadInput, match="cannot be read"):
        open_data(str(path))


def test_a_table_that_unpacks_to_far_more_than_its_file_is_refused(tmp_path: Path):
    path = tmp_path / "bomb.parquet"
    pq.write_table(pa.table({"image": pa.array([bytes(2**25)] * 100, pa.binary()), "label": [0] * 100}), path, compression="zstd")
    assert path.stat().st_size < 1e6
    with pytest.raises(BadInput, match="hold more than"):
        open_data(str(path))


def test_rows_with_nothing_in_them_are_few_enough_to_go_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(arrow, "LARGE", 2**20)
    path = tmp_path / "nulls.parquet"
    pq.write_table(pa.table({"image": pa.nulls(200_000, pa.binary()), "label": pa.array([0] * 200_000, pa.int8())}), path)
    with pytest.raises(BadInput, match="hold more than"):
        open_data(str(path))


def test_a_column_that_stands_there_twice_is_told(tmp_path: Path):
    column = pa.array([picture(i) for i in range(4)], pa.binary())
    pq.write_table(pa.Table.from_arrays([column, column], names=["image", "image"]), tmp_path / "a.parquet")
    with pytest.raises(BadInput, match="has the column 'image' twice"):
        open_data(str(tmp_path / "a.parquet"))


def arrow_file(path: Path, content: Any, form: str, compression: str | None) -> Path:
    new = pa.ipc.new_stream if form == "stream" else pa.ipc.new_file
    with (
        pa.OSFile(str(path), "wb") as out,
        new(out, content.schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as to,
    ):
        to.write_table(content)
    return path


@pytest.mark.parametrize("form", ["stream", "file"])
def test_compressed_arrow_files_are_read_like_others(tmp_path: Path, form: str):
    plain = open_data(str(arrow_file(tmp_path / "a.arrow", table(range(12)), form, None)))
    for compression in ("lz4", "zstd"):
        packed = open_data(str(arrow_file(tmp_path / f"{compression}.arrow", table(range(12)), form, compression)))
        assert rows(packed) == rows(plain)


@pytest.mark.parametrize("form", ["stream", "file"])
def test_one_batch_that_says_it_is_gigabytes_is_not_unpacked(tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch):
    content = pa.table({"image": pa.array([bytes(2**20)] * 40, pa.binary()), "label": [0] * 40})
    path = arrow_file(tmp_path / "bomb.arrow", content, form, "zstd")
    monkeypatch.setattr(arrow, "LARGE", 2**20)
    monkeypatch.setattr(arrow, "bounded", lambda path, batches: batches)
    with pytest.raises(BadInput, match="hold more than"):
        open_data(str(path))


@pytest.mark.parametrize("column", [[1] * 12, ["a"] * 12, [[1]] * 12, [{"bytes": 3}] * 12])
def test_pictures_that_are_no_bytes_are_told(tmp_path: Path, column: list[Any]):
    path = parquet(tmp_path / "train.parquet", table(range(12)).set_column(0, "image", pa.array(column)))
    with pytest.raises((BadInput, EmptyData)):
        open_data(str(path))


def test_labels_beyond_64_bits_are_told(tmp_path: Path):
    labels = pa.array([2**64 - 1] * 12, pa.uint64())
    path = parquet(tmp_path / "train.parquet", table(range(12)).set_column(1, "label", labels))
    with pytest.raises(BadInput, match="beyond 64 bits"):
        open_data(str(path))
