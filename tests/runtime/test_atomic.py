import errno
import os
from pathlib import Path

import pytest

from unfreeze.errors import ResourceError
from unfreeze.runtime.atomic import replacing, write_json, write_text


def test_a_crash_leaves_what_was_there(tmp_path):
    path = tmp_path / "file"
    write_text(path, "old")
    with pytest.raises(KeyError), replacing(path) as temporary:
        temporary.write_text("half")
        raise KeyError
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("number", "said"), [(errno.ENOSPC, "The disk is full"), (errno.EFBIG, "ulimit -f")]
)
def test_a_full_disk_is_said_and_the_old_file_is_whole(tmp_path, monkeypatch, number, said):
    path = tmp_path / "file"
    write_text(path, "old")

    def full(self, data):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(ResourceError, match=said) as error:
        write_text(path, "new")
    assert error.value.exit_code == 6 and path.read_text() == "old"


def test_folders_are_made_and_modes_follow_the_umask(tmp_path):
    path = tmp_path / "a" / "b.json"
    write_json(path, {"x": 1})
    assert path.stat().st_mode & 0o600 == 0o600 and path.read_text() == '{\n  "x": 1\n}\n'


def test_no_room_for_the_name_alone_is_a_full_disk_too(tmp_path, monkeypatch):
    def full(**_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("tempfile.mkstemp", full)
    with pytest.raises(ResourceError, match="disk is full"):
        write_text(tmp_path / "file", "new")


def test_the_longest_name_a_disk_takes_is_written(tmp_path):
    write_text(tmp_path / ("n" * 255), "text")
    assert [len(path.name) for path in tmp_path.iterdir()] == [255]
