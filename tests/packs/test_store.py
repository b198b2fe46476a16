"""Packs survive the disk, and damage is named."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import msgspec
import pytest

from parhelion.errors import PackError
from parhelion.packs import files as packs_files
from parhelion.packs.store import encode, read_pack, write_pack
from tests.packs.sample import CODE, FILES, binary, pack, sha256

KINDS = ["pack.zip", "pack"]


def write_raw(path: Path, entries: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> Path:
    """A zip of anything."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return path


def record(**changes: object) -> bytes:
    return json.dumps(json.loads(encode(pack())) | changes).encode()


@pytest.mark.parametrize("name", KINDS)
def test_what_is_written_is_read(tmp_path: Path, name: str) -> None:
    write_pack(pack(), FILES, tmp_path / "deep" / name)
    stored = read_pack(tmp_path / "deep" / name)
    assert stored.pack == pack()
    assert stored.binary(stored.pack.binaries[0]) == CODE
    assert stored.unnamed_files() == []
    assert [path.name for path in (tmp_path / "deep").iterdir()] == [name]


def test_the_same_pack_becomes_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"b.cubin": b"b", "a.cubin": b"a"}
    binaries = tuple(
        binary(code, file=name, recipe=pack().binaries[0].recipe, kernel=name) for name, code in files.items()
    )
    versions = {"torch": "2", "helion": "1"}
    write_pack(pack(binaries=binaries, versions=versions), files, tmp_path / "one.zip")
    monkeypatch.setattr("time.time", lambda: 2e9)
    backwards = dict(reversed(files.items())), dict(reversed(versions.items()))
    write_pack(pack(binaries=binaries, versions=backwards[1]), backwards[0], tmp_path / "two.zip")
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "one.zip") as archive:
        assert archive.namelist() == ["pack.json", "bin/a.cubin", "bin/b.cubin"]
        assert {(entry.date_time, entry.create_system, entry.external_attr) for entry in archive.infolist()} == {
            ((1980, 1, 1, 0, 0, 0), 3, 0o100644 << 16)
        }


@pytest.mark.parametrize("name", KINDS)
def test_an_older_pack_is_replaced_whole(tmp_path: Path, name: str) -> None:
    write_pack(pack(), FILES, tmp_path / name)
    other = binary(b"other", file="other.cubin")
    old = read_pack(tmp_path / name)
    write_pack(pack(binaries=(other,)), {"other.cubin": b"other"}, tmp_path / name)
    stored = read_pack(tmp_path / name)
    assert stored.binary(other) == b"other"
    assert stored.unnamed_files() == []
    assert [path.name for path in tmp_path.iterdir()] == [name]
    if name.endswith(".zip"):
        assert old.binary(old.pack.binaries[0]) == CODE


@pytest.mark.parametrize("name", KINDS)
def test_a_write_that_fails_leaves_the_older_pack(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write_pack(pack(), FILES, tmp_path / name)

    def full(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("parhelion.packs.store._write_zip", full)
    monkeypatch.setattr("parhelion.packs.store._write_folder", full)
    with pytest.raises(OSError, match="disk full"):
        write_pack(pack(name="new"), FILES, tmp_path / name)
    assert read_pack(tmp_path / name).pack == pack()
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", KINDS)
def test_something_else_is_not_replaced_by_a_pack(tmp_path: Path, name: str) -> None:
    (tmp_path / name / "photos").mkdir(parents=True)
    with pytest.raises(PackError, match="no such pack, so it is not replaced; name another path"):
        write_pack(pack(), FILES, tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "rms_norm.cubin of rms_norm.rms_norm was not given"),
        ({"rms_norm.cubin": CODE[:-1]}, "is not what its num_bytes and sha256 say"),
        ({"rms_norm.cubin": CODE[:-1] + b"!"}, "is not what its num_bytes and sha256 say"),
        (FILES | {"more.cubin": b""}, "no binary of the pack names the file 'more.cubin'"),
    ],
)
def test_only_what_the_record_says_is_written(tmp_path: Path, files: dict[str, bytes], message: str) -> None:
    with pytest.raises(PackError, match=message):
        write_pack(pack(), files, tmp_path / "pack.zip")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "pack.json cannot be used"),
        (b"{" * 10, "pack.json cannot be used"),
        (b"[" * 100_000, "pack.json cannot be used"),
        (b'{"format_version": 1, "a": ' + b"[" * 100_000, "pack.json cannot be used"),
        (b'{"format_version": "\xff"}', "pack.json cannot be used"),
        (b"{}", "missing required field `format_version`"),
        (encode(pack())[:-200], "pack.json cannot be used"),
        (record(colour="red"), "unknown field `colour`"),
        (record(rows=[{"op": "rms_norm"}]), r"missing required field `contract` - at `\$.rows\[0\]`"),
        (record(name=7), r"Expected `str`, got `int` - at `\$.name`"),
        (record(format_version=2, colour="red"), "has format_version 2, and this Parhelion reads 1: install a newer"),
        (record(format_version=0), "has format_version 0, and this Parhelion reads 1: build the pack again"),
    ],
)
def test_a_damaged_record_is_named_with_its_field(tmp_path: Path, data: bytes, message: str) -> None:
    path = write_raw(tmp_path / "damaged.zip", {"pack.json": data})
    with pytest.raises(PackError, match=message) as raised:
        read_pack(path)
    assert str(path) in str(raised.value)


def test_a_pack_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(PackError, match=r"there is no pack at .*none.zip; parhelion pack ls"):
        read_pack(tmp_path / "none.zip")
    with pytest.raises(PackError, match=r"pack.json is missing"):
        read_pack(tmp_path)
    with pytest.raises(PackError, match=r"pack.json is missing"):
        read_pack(write_raw(tmp_path / "empty.zip", {}))


@pytest.mark.parametrize("keep", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_a_truncated_zip_is_refused(tmp_path: Path, keep: float) -> None:
    write_pack(pack(), FILES, tmp_path / "pack.zip")
    data = (tmp_path / "pack.zip").read_bytes()
    (tmp_path / "pack.zip").write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(PackError, match="no readable zip"):
        read_pack(tmp_path / "pack.zip")


def test_any_altered_byte_of_a_zip_is_seen_or_changes_nothing(tmp_path: Path) -> None:
    write_pack(pack(), FILES, tmp_path / "pack.zip")
    data = (tmp_path / "pack.zip").read_bytes()
    path = tmp_path / "altered.zip"
    refused = 0
    for position in range(len(data)):
        path.write_bytes(data[:position] + bytes([data[position] ^ 0x41]) + data[position + 1 :])
        try:
            stored = read_pack(path)
            code = stored.binary(stored.pack.binaries[0])
        except PackError:
            refused += 1
            continue
        assert (stored.pack, code) == (pack(), CODE)
    assert refused > len(data) * 0.7


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, "bin/rms_norm.cubin is missing"),
        (CODE[:-1], f"has {len(CODE) - 1} bytes, and pack.json says num_bytes {len(CODE)}"),
        (CODE[:-1] + b"!", "has sha256 .*, and pack.json says"),
    ],
)
def test_an_altered_binary_is_named_when_it_is_asked_for(tmp_path: Path, data: bytes | None, message: str) -> None:
    write_pack(pack(), FILES, tmp_path / "pack")
    file = tmp_path / "pack" / "bin" / "rms_norm.cubin"
    file.unlink() if data is None else file.write_bytes(data)
    stored = read_pack(tmp_path / "pack")
    with pytest.raises(PackError, match=message):
        stored.binary(stored.pack.binaries[0])


@pytest.mark.parametrize(
    "name", ["../evil", "/etc/passwd", "a/b", "..", ".", "", "a\\b", "C:evil", "a\0b", ".hidden", "a\n"]
)
def test_file_names_that_leave_the_pack_are_refused(tmp_path: Path, name: str) -> None:
    bad = pack(binaries=(binary(file=name),))
    with pytest.raises(PackError, match="have no separators"):
        write_pack(bad, {name: CODE}, tmp_path / "pack.zip")
    with pytest.raises(PackError, match="have no separators"):
        read_pack(write_raw(tmp_path / "pack.zip", {"pack.json": encode(bad)}))
    write_pack(pack(), FILES, tmp_path / "good.zip")
    with pytest.raises(PackError, match="have no separators"):
        read_pack(tmp_path / "good.zip").binary(bad.binaries[0])


@pytest.mark.parametrize(
    "name", ["../evil", "bin/../../evil", "/evil", "bin/a/b", "pack/pack.json", "README.md", "bin/.x"]
)
def test_a_zip_with_anything_else_in_it_is_refused(tmp_path: Path, name: str) -> None:
    path = write_raw(tmp_path / "pack.zip", {"pack.json": encode(pack()), "bin/rms_norm.cubin": CODE, name: b"x"})
    with pytest.raises(PackError, match="and nothing else"):
        read_pack(path)


def test_a_folder_that_was_zipped_by_hand_is_read(tmp_path: Path) -> None:
    entries = {"bin/": b"", "bin/rms_norm.cubin": CODE, "pack.json": encode(pack())}
    stored = read_pack(write_raw(tmp_path / "pack.zip", entries, zipfile.ZIP_STORED))
    assert stored.binary(stored.pack.binaries[0]) == CODE


def test_a_zip_with_two_files_of_one_name_is_refused(tmp_path: Path) -> None:
    path = write_raw(tmp_path / "pack.zip", {"pack.json": encode(pack())})
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("pack.json", encode(pack(name="evil")))
    with pytest.raises(PackError, match="two files of one name"):
        read_pack(path)


def test_other_compressions_are_refused(tmp_path: Path) -> None:
    path = write_raw(tmp_path / "pack.zip", {"pack.json": encode(pack())}, zipfile.ZIP_LZMA)
    with pytest.raises(PackError, match="something else than deflate"):
        read_pack(path)


def test_a_small_zip_cannot_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packs_files, "MAX_FILE_BYTES", 1 << 20)
    path = write_raw(tmp_path / "pack.zip", {"pack.json": b" " * ((1 << 20) + 1)})
    assert path.stat().st_size < 1 << 14
    with pytest.raises(PackError, match="at most 1048576 are read"):
        read_pack(path)


def test_two_binaries_may_share_a_file(tmp_path: Path) -> None:
    twins = (binary(), binary(config={"num_warps": 8}))
    write_pack(pack(binaries=twins), FILES, tmp_path / "pack.zip")
    stored = read_pack(tmp_path / "pack.zip")
    assert [stored.binary(each) for each in stored.pack.binaries] == [CODE, CODE]


def test_the_record_can_be_read_by_people(tmp_path: Path) -> None:
    text = encode(pack()).decode()
    assert '\n "name": "h100-sxm",\n' in text
    assert msgspec.json.decode(text)["binaries"][0]["sha256"] == sha256(CODE)
