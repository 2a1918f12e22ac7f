"""Files are replaced in one step, through links, and nothing but files."""

import os
from contextlib import suppress
from pathlib import Path

import pytest

from eamsim.cli.manifest import check_writable, write_manifest
from eamsim.errors import BadFile, UserError
from eamsim.files.container import replacing, replacing_all


def write(path, text="new"):
    with replacing(path) as temporary:
        temporary.write_text(text)


def test_a_link_stays_and_what_it_leads_to_is_replaced(tmp_path):
    (tmp_path / "there").mkdir()
    target, link = tmp_path / "there" / "target", tmp_path / "link"
    target.write_text("old")
    link.symlink_to(target)

    write(link)

    assert link.is_symlink()
    assert target.read_text() == "new"
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["link", "target", "there"]


def test_a_dangling_link_makes_its_target(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "target")

    write(tmp_path / "link")

    assert (tmp_path / "target").read_text() == "new"
    assert (tmp_path / "link").is_symlink()


def test_a_link_to_itself_is_an_error(tmp_path):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")

    with pytest.raises(OSError, match=r"Too many levels|Not a regular|File exists"):
        write(tmp_path / "loop" / "x")
    assert (tmp_path / "loop").is_symlink()


def test_a_fifo_and_a_device_are_refused(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", "/dev/null"):
        with pytest.raises(OSError, match="Not a regular file"), replacing(tmp_path / path):
            pass
        with pytest.raises(UserError, match=f"--out: {path} cannot be written; choose a file"):
            check_writable("--out", tmp_path / path)

    with pytest.raises(BadFile, match=r"fifo: cannot be written \(Not a regular file\); free some space, or choose another path"):
        write_manifest(tmp_path / "fifo", {})
    assert (tmp_path / "fifo").is_fifo()
    assert [path.name for path in tmp_path.iterdir()] == ["fifo"]


def test_files_of_a_folder_come_together_the_first_last(tmp_path: Path):
    renamed: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "replace", lambda old, new, replace=os.replace: (renamed.append(new.name), replace(old, new)))
        with replacing_all(tmp_path / "new" / "folder") as place:
            for name in ("manifest.json", "taps/a.hex"):
                place(name).write_text(name)
            assert not any(path.is_file() and path.suffix != ".tmp" for path in tmp_path.rglob("*"))
    assert renamed == ["a.hex", "manifest.json"]
    assert (tmp_path / "new/folder/taps/a.hex").read_text() == "taps/a.hex"


def test_a_failure_leaves_no_file_and_no_new_folder_and_what_was_there(tmp_path: Path):
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "a").write_text("before")
    for folder in ("old", "new/folder"):
        with suppress(InterruptedError), replacing_all(tmp_path / folder) as place:
            for name in ("a", "taps/b"):
                place(name).write_text("after")
            raise InterruptedError
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")) == ["old", "old/a"]
    assert (tmp_path / "old" / "a").read_text() == "before"
