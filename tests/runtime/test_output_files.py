"""Nothing is written over an input, nor over a file that the command did not make."""

import os

import numpy as np
import pytest

from unfreeze.errors import UsageError
from unfreeze.runtime.output_files import (
    check_output_file,
    is_csv_with,
    is_json_with,
    is_npz_with,
    is_our_page,
    refuse_inside,
    same_file,
)

OURS = is_csv_with(("path", "label"))


@pytest.fixture
def mine(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.csv").write_text("name,phone\nanna,17\n")
    (tmp_path / "earlier.csv").write_text("path,label\na.png,cat\n")
    return tmp_path


def test_a_new_file_an_empty_one_and_an_earlier_one_may_be_written(mine):
    (mine / "empty").write_text("")
    for name in ("new.csv", "folder/to/come.csv", "empty", "earlier.csv"):
        assert check_output_file(name, ours=OURS).name == name.rpartition("/")[2]
    assert not (mine / "folder").exists()


@pytest.mark.parametrize("name", ["mine.csv", "./mine.csv", "linked.csv", "hard.csv"])
def test_a_file_of_somebody_else_is_refused_by_every_name(mine, name):
    (mine / "linked.csv").symlink_to("mine.csv")
    os.link("mine.csv", "hard.csv")
    with pytest.raises(UsageError, match="not written by this command"):
        check_output_file(name, ours=OURS)


@pytest.mark.parametrize("name", ["earlier.csv", "./earlier.csv", "linked.csv", "hard.csv", "a/.."])
def test_an_input_is_refused_by_every_name_also_where_we_wrote_it(mine, name):
    (mine / "linked.csv").symlink_to("earlier.csv")
    os.link("earlier.csv", "hard.csv")
    (mine / "a").mkdir()
    target = "a/../earlier.csv" if name == "a/.." else name
    with pytest.raises(UsageError, match="is an input"):
        check_output_file(target, ours=OURS, inputs=["digits", str(mine / "earlier.csv")])


def test_a_link_to_an_earlier_result_is_followed_and_not_replaced(mine):
    (mine / "latest.csv").symlink_to("earlier.csv")
    assert check_output_file("latest.csv", ours=OURS) == (mine / "earlier.csv").resolve()


@pytest.mark.parametrize("name", ["pipe", "/dev/null", "folder", "dangling", "x" * 300, "a\0b"])
def test_what_is_no_file_is_refused(mine, name):
    os.mkfifo("pipe")
    (mine / "folder").mkdir()
    (mine / "dangling").symlink_to("nowhere")
    with pytest.raises(UsageError) as caught:
        check_output_file(name, ours=lambda path: True)
    assert caught.value.next_step


def test_a_file_inside_an_archive_is_none(mine):
    (mine / "d.zip").write_bytes(b"PK")
    with pytest.raises(UsageError, match="in a file"):
        check_output_file("d.zip/found.csv", ours=OURS)


def test_our_files_are_known_by_what_is_in_them(mine):
    np.savez(mine / "two.npz", paths=np.zeros(1), images=np.zeros(1))
    assert is_npz_with("images", "paths")(mine / "two.npz")
    assert not is_npz_with("paths")(mine / "two.npz") and not is_npz_with("paths")(
        mine / "mine.csv"
    )
    (mine / "page.html").write_text("<html><title>unfreeze</title></html>")
    assert not is_our_page(mine / "page.html")
    (mine / "a.json").write_text('{"n": 1, "split": "val"}')
    assert is_json_with("n")(mine / "a.json") and not is_json_with("n", "x")(mine / "a.json")
    assert not is_json_with("n")(mine / "mine.csv")
    assert not OURS(mine / "mine.csv") and OURS(mine / "earlier.csv")


def test_a_folder_with_an_input_in_it_is_not_emptied(mine):
    (mine / "run/data").mkdir(parents=True)
    (mine / "link").symlink_to("run/data")
    for name in ("run", "run/data", "link", str(mine / "run/data")):
        with pytest.raises(UsageError, match="would delete"):
            refuse_inside("--overwrite", mine / "run", [name])
    refuse_inside("--overwrite", mine / "run", ["mine.csv", "imagenet", "run/imagenet", "s3://a/b"])
    assert not same_file(mine, "nowhere") and not same_file(mine, "a\0b")
