"""Files are replaced in one step, through links, and nothing but files."""

import os

import pytest

from eamsim.cli.manifest import check_writable, write_manifest
from eamsim.errors import BadFile, UserError
from eamsim.files.container import replacing


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
