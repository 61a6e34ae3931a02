"""`label`: who may use its page, what is on disk when, and its table in `finetune --labels`."""

import csv
import fcntl
import http.client
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image

import unfreeze
from unfreeze.cli.main import main
from unfreeze.commands.finetune import finetune
from unfreeze.commands.pretrain import pretrain
from unfreeze.evaluation.label_selection import clustering_space
from unfreeze.runs.labelling.model import groups_alike
from unfreeze.runtime.terminal import Environment

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)
SMALL = {"arch": "unfreeze/tiny", "image_size": 16, "precision": "fp32", "workers": 0}
TINY = SMALL | {"weights": "none", "augment": "none", "epochs": 1}
COLOURS = ("red", "green", "blue")


def address(text):
    match = re.search(r"http://127\.0\.0\.1:\d+/[\w-]+/", text)
    return match[0] if match else None


class Page:
    """The command in a thread, and its page as a browser uses it."""

    def __init__(self, *words):
        self.out, self.err, self.code = io.StringIO(), io.StringIO(), None
        self.words = ["label", *map(str, words), "--no-browser", "--json"]
        self.thread = threading.Thread(target=self._run)
        self.thread.start()
        while (url := address(self.err.getvalue())) is None and self.thread.is_alive():
            time.sleep(0.01)
        self.url = url or pytest.fail(self.err.getvalue())

    def _run(self):
        self.code = main(self.words, Environment(self.out, self.err))

    def get(self, path):
        with urllib.request.urlopen(self.url + path) as answer:
            return answer.read()

    def status(self, after=-1):
        return json.loads(self.get(f"status/{after}"))

    def item(self, number):
        return json.loads(self.get(f"item/{number}"))

    def label(self, image, label):
        answer = self.give([image], [label])
        return answer | {"previous": answer["previous"][0]}

    def give(self, images, labels):
        return json.loads(self.post("label", {"images": images, "labels": labels}))

    def post(self, path, value):
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self.url + path, json.dumps(value).encode(), headers)
        with urllib.request.urlopen(request) as answer:
            return answer.read()

    def refused(self, image, label):
        with pytest.raises(urllib.error.HTTPError) as caught:
            self.label(image, label)
        return caught.value.code, json.loads(caught.value.read())["error"]

    def finish(self):
        self.post("finish", {})
        self.thread.join()
        assert self.code == 0, self.err.getvalue()
        return json.loads(self.out.getvalue())


@pytest.fixture
def page(request):
    """Starts pages; those that a test leaves open are finished."""
    pages = []

    def start(*words):
        pages.append(Page(*words))
        return pages[-1]

    yield start
    for one in pages:
        if one.thread.is_alive():
            one.finish()


@pytest.fixture(scope="module")
def flat(colours, tmp_path_factory):
    """24 unlabelled images whose names have their class."""
    place = tmp_path_factory.mktemp("flat")
    data = colours(place / "classes", dict.fromkeys(COLOURS, 8))
    (place / "flat").mkdir()
    for file in data.rglob("*.png"):
        file.rename(place / "flat" / f"{file.parent.name}-{file.name}")
    return place / "flat"


def rows_of(path):
    with Path(path).open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def labels_of(path):
    return {row["path"]: row["label"] for row in rows_of(path)}


def truth(path):
    return path.partition("-")[0]


def raw(url, method, path, headers=(), body=None):
    """(code, body) of a request with exactly these headers."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname, parts.port)
    connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
    for name, value in dict(headers).items():
        connection.putheader(name, value)
    connection.endheaders(body)
    answer = connection.getresponse()
    found = answer.status, answer.read()
    connection.close()
    return found


def test_every_label_is_on_disk_before_the_answer(flat, page, tmp_path):
    out = tmp_path / "labels.csv"
    p = page(flat, "--classes", "red,green", "--none-class", "other", "--out", out)
    first = p.status()
    assert (first["labelled"], first["total"], first["ahead"]) == (0, 24, [0, 1, 2, 3])
    assert (first["classes"], first["none"]) == (["red", "green", "other"], "other")
    assert not out.exists()
    assert p.item(0) == {"path": "blue-000.png", "label": "", "hint": None}
    done = p.label(0, "dark blue")  # a new class
    assert rows_of(out) == [{"path": "blue-000.png", "label": "dark blue", "split": ""}]
    assert (done["previous"], done["labelled"], done["ahead"]) == ("", 1, [1, 2, 3, 4])
    assert done["classes"] == ["red", "green", "other", "dark blue"]
    assert p.label(0, "red")["previous"] == "dark blue"
    assert labels_of(out) == {"blue-000.png": "red"}
    assert p.label(0, "")["labelled"] == 0  # undo
    assert labels_of(out) == {"blue-000.png": ""}
    p.label(5, "other")
    assert p.status(4)["ahead"] == [6, 7, 8, 9]
    assert p.status(22)["ahead"] == [23, 0, 1, 2]  # what was skipped comes again
    result = p.finish()
    assert labels_of(out) == {"blue-000.png": "", "blue-005.png": "other"}
    assert (result["given"], result["labelled"], result["images"]) == (1, 1, 24)
    assert (result["classes"], result["out"]) == ({"other": 1}, str(out))


def test_nobody_without_the_address_gets_anything(flat, page, tmp_path):
    p = page(flat, "--classes", "red", "--out", tmp_path / "labels.csv")
    parts = urlsplit(p.url)
    own, token = parts.netloc, parts.path.strip("/")
    assert len(token) >= 32
    good = {"Host": own}
    assert raw(p.url, "GET", f"/{token}/status/-1", good)[0] == 200
    assert raw(p.url, "GET", f"/{token}/", {"Host": f"localhost:{parts.port}"})[0] == 200
    for path in ("/", "/status/-1", f"/{token[:-1]}/status/-1", f"/x{token}/", "//", "/%00/"):
        assert raw(p.url, "GET", path, good)[0] == 403, path
    for host in (
        "evil.example",
        f"evil.example:{parts.port}",
        "127.0.0.1",
        f"0.0.0.0:{parts.port}",
    ):
        assert raw(p.url, "GET", f"/{token}/status/-1", {"Host": host})[0] == 403, host
    assert raw(p.url, "GET", f"/{token}/status/-1")[0] == 403  # no Host at all
    body = b'{"images": [0], "labels": ["red"]}'
    size = {"Content-Length": str(len(body))}
    sent = good | size | {"Content-Type": "application/json"}
    where = f"/{token}/label"
    assert raw(p.url, "POST", "/label", sent, body)[0] == 403
    assert raw(p.url, "POST", where, sent | {"Origin": "http://evil.example"}, body)[0] == 403
    assert raw(p.url, "POST", where, sent | {"Origin": "null"}, body)[0] == 403
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
        assert raw(p.url, "POST", where, sent | {"Content-Type": kind}, body)[0] == 415
    assert raw(p.url, "POST", where, sent | {"Content-Length": "99999999"}, b"")[0] == 413
    assert raw(p.url, "POST", where, sent | {"Content-Length": "-1"}, b"")[0] == 413
    assert raw(p.url, "GET", where, good)[0] == 404  # a link cannot label
    for method in ("PUT", "DELETE", "HEAD", "OPTIONS"):
        assert raw(p.url, method, f"/{token}/status/-1", good)[0] == 501
    one = {"images": [0], "labels": ["red"]}
    strange = [one | {"images": images} for images in ([99], [-1], [0.5], ["0"], [True], [0, 1], 0)]
    strange += [one | {"labels": labels} for labels in ([1], [None], [], "red", {})]
    strange += [[], "x", {"images": [0]}, {"images": [], "labels": []}]
    for wrong in (*(json.dumps(value).encode() for value in strange), b"{", b"[" * 5000):
        length = {"Content-Length": str(len(wrong))}
        assert raw(p.url, "POST", where, sent | length, wrong)[0] == 400, wrong
    assert not (tmp_path / "labels.csv").exists()
    assert raw(p.url, "POST", where, sent | {"Origin": f"http://{own}"}, body)[0] == 200
    assert len(rows_of(tmp_path / "labels.csv")) == 1


def test_the_server_listens_on_this_machine_only(flat, page, tmp_path):
    p = page(flat, "--out", tmp_path / "labels.csv")
    port = urlsplit(p.url).port
    listening = Path("/proc/net/tcp").read_text().splitlines()[1:]
    own = [line.split()[1] for line in listening if line.split()[3] == "0A"]
    assert [where for where in own if where.endswith(f":{port:04X}")] == [f"0100007F:{port:04X}"]
    listening6 = Path("/proc/net/tcp6")
    assert not listening6.exists() or f":{port:04X} 0" not in listening6.read_text()


def test_images_are_named_by_number_only(flat, page, tmp_path):
    (tmp_path / "secret.png").write_bytes((flat / "red-000.png").read_bytes())
    p = page(flat, "--out", tmp_path / "labels.csv")
    token = urlsplit(p.url).path
    ways = (
        "../../secret.png",
        "%2e%2e/secret.png",
        "red-000.png",
        "/etc/passwd",
        "-1",
        "24",
        "0/1",
    )
    for way in (*ways, "1e0", "%D9%A3", "", "0x1", "9" * 5000, "..", "1%20"):
        for kind in ("image", "item", "thumb", "group"):
            code, body = raw(p.url, "GET", f"{token}{kind}/{way}", {"Host": urlsplit(p.url).netloc})
            assert (code, json.loads(body)) == (404, {"error": "There is no such page."}), way
    shown = Image.open(io.BytesIO(p.get("image/23")))
    assert (shown.format, shown.size) == ("JPEG", (14, 12))
    assert np.asarray(shown)[..., 0].mean() > np.asarray(shown)[..., 2].mean() + 50  # red-007


def test_images_are_shown_as_training_reads_them(page, tmp_path):
    """Turned by EXIF, transparency on white, at most 1600 pixels; broken ones never labelled."""
    (tmp_path / "d").mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (3200, 100), "red").save(tmp_path / "d/a.jpg", exif=exif)
    Image.new("RGBA", (20, 20), (0, 0, 0, 0)).save(tmp_path / "d/b.png")
    Image.fromarray(np.full((20, 20), 65535, np.uint16)).save(tmp_path / "d/c.png")
    (tmp_path / "d/d.jpg").write_bytes(b"\xff\xd8\xff and no more")
    out = tmp_path / "labels.csv"
    p = page(tmp_path / "d", "--classes", "x,y", "--out", out)
    assert Image.open(io.BytesIO(p.get("image/0"))).size == (50, 1600)
    for number in (1, 2):
        assert np.asarray(Image.open(io.BytesIO(p.get(f"image/{number}")))).min() > 250
    code, sentence = p.refused(3, "x")  # before it was ever shown
    assert code == 409 and "cannot be read: truncated" in sentence and not out.exists()
    with pytest.raises(urllib.error.HTTPError) as caught:
        p.get("image/3")
    assert caught.value.code == 422 and "truncated" in json.loads(caught.value.read())["error"]
    after = p.label(0, "x")
    assert (after["labelled"], after["unreadable"], after["ahead"]) == (1, 1, [1, 2])
    p.label(1, "x")
    assert p.label(2, "y")["ahead"] == []
    result = p.finish()
    assert (result["labelled"], result["unreadable"]) == (3, 1)
    assert "cannot be read: d.jpg: truncated" in p.err.getvalue()
    assert set(labels_of(out)) == {"a.jpg", "b.png", "c.png"}


def test_names_that_finetune_would_read_otherwise_are_refused(flat, page, tmp_path):
    p = page(flat, "--classes", "red", "--out", tmp_path / "labels.csv")
    for name in ("Red", " RED ", "a;b", "a|b", "   ", "x" * 201, "a\nb", "a\0b", "\ud800"):
        code, sentence = p.refused(0, name)
        assert code == 409 and sentence, name
    assert not (tmp_path / "labels.csv").exists()
    p.label(0, ' =1+1, "quoted" é ')
    p.label(1, "e\u0301")  # as macOS writes it
    assert list(labels_of(tmp_path / "labels.csv").values()) == ['=1+1, "quoted" é', "é"]
    p.finish()
    numbers = tmp_path / "numbers.csv"
    numbers.write_text("path,label,split\nred-000.png,1.0,\nred-001.png,2.0,\n")
    p = page(flat, "--out", numbers)
    assert "read as 'no label'" in p.refused(2, "none")[1]  # as `finetune` reads such a column
    assert "read as '3'" in p.refused(2, "3.0")[1]


def test_two_browsers_lose_no_label(flat, page, tmp_path):
    out = tmp_path / "labels.csv"
    p = page(flat, "--classes", "red,green,blue", "--out", out)

    def half(numbers):
        for number in numbers:
            p.label(number, truth(p.item(number)["path"]))

    with ThreadPoolExecutor(2) as pool:
        for one in [pool.submit(half, range(0, 24, 2)), pool.submit(half, range(1, 24, 2))]:
            one.result()
    assert len(rows_of(out)) == 24 and all(truth(p) == label for p, label in labels_of(out).items())
    assert p.status()["ahead"] == [] and p.finish()["given"] == 24


def test_a_table_of_suggest_is_filled_in_and_continued(flat, page, tmp_path):
    out = tmp_path / "labels.csv"
    lines = [
        "red-003.png,,train",
        "gone.png,red,train",
        "blue-001.png,,test",
        "green-002.png,green,",
    ]
    out.write_text("\n".join(["path,label,split", *lines]) + "\n")
    p = page(flat, "--out", out)
    assert [p.item(n)["path"] for n in range(4)] == [
        "red-003.png", "blue-001.png", "green-002.png", "blue-000.png"
    ]  # fmt: skip
    status = p.status()
    assert (status["labelled"], status["classes"]) == (1, ["green", "red"])
    assert status["ahead"] == [0, 1, 3, 4]
    p.label(1, "blue")
    p.label(3, "blue")
    assert out.read_text().splitlines()[1:] == [
        *lines[:2], "blue-001.png,blue,test", lines[3], "blue-000.png,blue,train"
    ]  # fmt: skip
    assert "1 line of" in p.err.getvalue()
    p.finish()
    again = page(flat, "--out", out)
    assert (again.status()["labelled"], again.item(1)["label"]) == (3, "blue")
    before = out.read_bytes()
    assert again.finish()["given"] == 0 and out.read_bytes() == before


def test_a_table_that_another_program_wrote_meanwhile_is_kept(flat, page, tmp_path):
    out = tmp_path / "labels.csv"
    p = page(flat, "--classes", "red", "--out", out)
    p.label(0, "red")
    edited = "path,label,split\nblue-001.png,mine,\n"
    out.write_text(edited)
    code, sentence = p.refused(1, "red")
    assert code == 409 and "another program" in sentence and out.read_text() == edited
    assert p.status()["labelled"] == 1  # what is not on disk is not shown as done


def test_a_full_disk_is_said_and_changes_nothing(flat, page, tmp_path, monkeypatch):
    out = tmp_path / "labels.csv"
    p = page(flat, "--classes", "red", "--out", out)
    p.label(0, "red")
    before = out.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("unfreeze.runtime.atomic._sync", full)
        for image in (0, 1):
            code, sentence = p.refused(image, "")
            assert code == 409 and "disk is full" in sentence
    assert out.read_bytes() == before and p.status()["labelled"] == 1
    assert p.label(1, "red")["labelled"] == 2


def call(*words):
    out, err = io.StringIO(), io.StringIO()
    code = main(list(map(str, words)), Environment(out, err))
    return code, out.getvalue(), err.getvalue()


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        ("path,label\na,b\n", 2, "not written by this command"),
        ("path,label,split\nred-000.png,red,,x\n", 3, "more than 3 fields"),
        ("path,label,split\nred-000.png,red,\nred-000,red,\n", 3, "is listed twice"),
        ("path,label,split\nred-000.png,a;b,\nred-001.png,a,\n", 2, "several labels"),
    ],
)
def test_tables_that_would_lose_something_are_refused(flat, tmp_path, text, code, words):
    out = tmp_path / "labels.csv"
    out.write_text(text)
    found = call("label", flat, "--no-browser", "--out", out)
    assert (found[0], out.read_text()) == (code, text) and words in found[2], found


def test_what_cannot_be_labelled_is_said(flat, colours, tmp_path, page):
    out = tmp_path / "labels.csv"
    for words, code, said in (
        ([flat], 2, "--out"),
        ([flat, "--classes", "a,A", "--out", out], 2, "differ only by case"),
        ([flat, "--none-class", "a;b", "--out", out], 2, "several labels"),
        ([flat, "--port", "70000", "--out", out], 2, "--port"),
        ([tmp_path / "nothing", "--out", out], 3, "nothing"),
        ([flat, "--run", tmp_path / "nothing", "--out", out], 2, "nothing"),
    ):
        found = call("label", *words, "--no-browser")
        assert found[0] == code and said in found[2], found
    p = page(flat, "--out", out)
    taken = call("label", flat, "--no-browser", "--out", out, "--port", urlsplit(p.url).port)
    assert taken[0] == 2 and "cannot be used" in taken[2]


def test_labels_of_the_data_itself_go_into_the_table(colours, tmp_path, page):
    data = colours(tmp_path / "d", {"train/red": 2, "train/blue": 2, "test/red": 1})
    out = tmp_path / "labels.csv"
    code, _, err = call("label", data, "--no-browser", "--out", out)
    assert code == 3 and "--ignore-labels" in err
    p = page(data, "--ignore-labels", "--out", out)
    assert (p.status()["labelled"], p.status()["classes"]) == (0, [])
    p.finish()
    shutil.copy(data / "train/red/000.png", data / "loose.png")
    p = page(data, "--out", out)
    assert (p.status()["labelled"], p.status()["total"]) == (5, 6)
    (todo,) = p.status()["ahead"]
    assert p.item(todo)["path"] == "loose.png" and not out.exists()
    p.label(todo, "red")
    assert [(row["path"], row["label"], row["split"]) for row in rows_of(out)] == [
        ("test/red/000.png", "red", "test"),
        *((f"train/blue/00{n}.png", "blue", "train") for n in (0, 1)),
        *((f"train/red/00{n}.png", "red", "train") for n in (0, 1)),
        ("loose.png", "red", "train"),
    ]


@pytest.fixture(scope="module")
def labelled(flat, tmp_path_factory):
    """A table with every image labelled through the page."""
    out = tmp_path_factory.mktemp("labelled") / "labels.csv"
    p = Page(flat, "--out", out)
    for number in range(24):
        p.label(number, truth(p.item(number)["path"]))
    p.finish()
    return out


def test_the_table_goes_into_finetune_and_its_run_shows_what_it_thinks(
    flat, labelled, tmp_path, page
):
    result = finetune(str(flat), labels=str(labelled), out=str(tmp_path / "run"), **TINY)
    assert result.classes == sorted(COLOURS)
    p = page(flat, "--run", tmp_path / "run", "--out", tmp_path / "more.csv")
    assert p.status()["classes"] == sorted(COLOURS)
    hints = [p.item(number)["hint"] for number in range(24)]
    assert {hint["label"] for hint in hints} <= set(COLOURS)
    shares = {p.item(n)["path"]: hint["probability"] for n, hint in enumerate(hints)}
    code, printed, _ = call("predict", tmp_path / "run", flat, "--top", 2, "--json")
    assert code == 0
    predicted = json.loads(printed)
    assert {Path(one["path"]).name: one["probability"] for one in predicted} == pytest.approx(
        shares, abs=1e-4
    )
    gaps = {
        Path(one["path"]).name: one["top"][0]["probability"] - one["top"][1]["probability"]
        for one in predicted
    }
    in_order = [gaps[p.item(number)["path"]] for number in range(24)]
    assert in_order == pytest.approx(sorted(in_order), abs=1e-4)  # the most uncertain first
    assert not (tmp_path / "more.csv").exists()  # a hint is no label


def test_groups_of_alike_images_get_their_label_at_once(flat, page, tmp_path):
    run = pretrain(str(flat), out=str(tmp_path / "run"), epochs=0, **SMALL).run
    out = tmp_path / "labels.csv"
    code, _, err = call("label", flat, "--run", run, "--out", out)
    assert code == 2 and "no classes" in err and "--clusters" in err
    assert call("label", flat, "--clusters", 3, "--out", out)[0] == 2
    p = page(flat, "--run", run, "--clusters", 3, "--out", out)
    assert (p.status()["groups"], p.item(0)["hint"]) == (3, None)
    groups = [json.loads(p.get(f"group/{n}")) for n in range(3)]
    assert [group["place"] for group in groups] == [0, 1, 2]
    assert sorted(n for group in groups for n in group["images"]) == list(range(24))
    first = groups[0]["images"]
    assert Image.open(io.BytesIO(p.get(f"thumb/{first[0]}"))).size == (14, 12)
    answer = p.give(first[1:], ["a"] * len(first[1:]))
    assert answer["previous"] == [""] * len(first[1:])
    assert labels_of(out) == {p.item(n)["path"]: "a" for n in first[1:]}
    assert json.loads(p.get("group/0")) == {"place": 0, "images": first[:1]}
    with pytest.raises(urllib.error.HTTPError):  # all or nothing
        p.give([first[0], first[1]], ["b", "a;b"])
    assert labels_of(out) == {p.item(n)["path"]: "a" for n in first[1:]}
    p.give(first, ["b"] * len(first))
    assert json.loads(p.get("group/0"))["place"] == 1
    p.give(first, ["", *["a"] * len(first[1:])])  # undo
    assert p.status()["labelled"] == len(first) - 1


def test_a_group_is_a_cluster_and_what_is_farthest_comes_first():
    draw = np.random.default_rng(0)
    centres = np.eye(3)[np.repeat([0, 1, 2], [100, 30, 5])] * 10
    features = (centres + draw.normal(0, 0.1, (135, 3))).astype(np.float32)
    groups = groups_alike(features, 3)
    assert [len(group) for group in groups] == [48, 48, 4, 30, 5]
    assert set(np.concatenate(groups[:3]).tolist()) == set(range(100))
    space = clustering_space(features)
    distance = np.linalg.norm(space[:100] - space[:100].mean(axis=0), axis=1)
    assert np.concatenate(groups[:3]).tolist() == np.argsort(distance)[::-1].tolist()
    assert len(groups_alike(features[:2], 5)) == 2


def process(flat, out):
    """The command as a process, and its address."""
    words = [sys.executable, "-m", "unfreeze", "label", str(flat), "--out", str(out)]
    made = subprocess.Popen(
        [*words, "--no-browser"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    for line in made.stderr:
        if (url := address(line)) is not None:
            return made, url
    return pytest.fail("the command has ended")


def posted(url, image, label):
    p = Page.__new__(Page)
    p.url = url
    return p.label(image, label)


def test_kill_9_loses_nothing(flat, tmp_path):
    out = tmp_path / "labels.csv"
    made, url = process(flat, out)
    for number in range(7):
        posted(url, number, "red")
    os.kill(made.pid, signal.SIGKILL)
    made.communicate()
    assert [row["label"] for row in rows_of(out)] == ["red"] * 7
    assert [file.name for file in tmp_path.iterdir()] == ["labels.csv"]


def test_ctrl_c_ends_it_with_the_next_command(flat, tmp_path):
    out = tmp_path / "labels.csv"
    made, url = process(flat, out)
    posted(url, 0, "red")
    posted(url, 1, "blue")
    os.kill(made.pid, signal.SIGINT)
    printed, err = made.communicate(timeout=30)
    assert made.returncode == 0, err
    assert printed.startswith("2 labels were given; 2 of 24 images have one.")
    command = printed.replace("\\\n", "").split("Next:")[1].split()
    expected = f"unfreeze finetune {flat} --labels {out} --freeze all --out RUN"
    assert command == expected.split()
    assert len(rows_of(out)) == 2


def test_open_connections_write_nothing_after_the_end(flat, page, tmp_path):
    out = tmp_path / "labels.csv"
    p = page(flat, "--classes", "red", "--out", out)
    p.label(0, "red")
    parts, before = urlsplit(p.url), out.read_bytes()
    connection = http.client.HTTPConnection(parts.hostname, parts.port)
    connection.request("GET", f"{parts.path}status/-1")
    assert connection.getresponse().read()
    p.finish()
    headers = {"Content-Type": "application/json"}
    connection.request("POST", f"{parts.path}label", b'{"images": [1], "labels": ["red"]}', headers)
    answer = connection.getresponse()
    assert (answer.status, "has ended" in answer.read().decode()) == (410, True)
    connection.close()
    assert out.read_bytes() == before


def test_python_opens_the_browser_and_returns_the_result(flat, tmp_path, monkeypatch, capfd):
    opened, out = [], tmp_path / "labels.csv"
    monkeypatch.setattr("webbrowser.open", opened.append)
    monkeypatch.setenv("DISPLAY", ":0")
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(unfreeze.label, flat, out, classes=["hot dog", "cat"])
        while not opened and not call.done():
            time.sleep(0.01)
        p = Page.__new__(Page)
        p.url = opened[0]
        assert p.status()["classes"] == ["hot dog", "cat"]
        p.label(0, "hot dog")
        p.post("finish", {})
        result = call.result()
    assert (result.given, result.rows()) == (1, [{"class": "hot dog", "images": 1}])
    assert address(capfd.readouterr().err) == opened[0]  # a script without a terminal, too
    with pytest.raises(unfreeze.UsageError, match="differ only by case"):
        unfreeze.label(flat, out, classes=["cat", "CAT", "a;b"])


def test_the_page_needs_nothing_from_elsewhere(flat, page, tmp_path):
    p = page(flat, "--out", tmp_path / "labels.csv")
    with urllib.request.urlopen(p.url) as answer:
        text, headers = answer.read().decode(), answer.headers
    assert "--paper" in text and not re.search(r"(src|href)=.?https?:|@import|innerHTML", text)
    assert headers["Content-Security-Policy"].startswith("default-src 'none'")
    assert headers["Cache-Control"] == "no-store" and headers["Referrer-Policy"] == "no-referrer"


class Browser:
    """Headless Chromium through its debugging pipe: JSON between NUL bytes, on descriptors 3, 4."""

    def __init__(self, folder):
        (read, self.to), (self.back, write) = os.pipe(), os.pipe()
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (read, write)]
        words = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder}"]
        words += ["--remote-debugging-pipe", "--window-size=1200,800", "about:blank"]
        self.process = subprocess.Popen(
            ["bash", "-c", f'exec "$0" "$@" 3<&{ends[0]} 4>&{ends[1]}', CHROMIUM, *words],
            pass_fds=ends, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        for end in (read, write, *ends):
            os.close(end)
        self.count, self.rest, self.session = 0, b"", None
        (target,) = [
            one for one in self.call("Target.getTargets")["targetInfos"] if one["type"] == "page"
        ]
        attach = {"targetId": target["targetId"], "flatten": True}
        self.session = self.call("Target.attachToTarget", **attach)["sessionId"]

    def call(self, method, **parameters):
        self.count += 1
        message = {"id": self.count, "method": method, "params": parameters}
        message |= {"sessionId": self.session} if self.session else {}
        os.write(self.to, json.dumps(message).encode() + b"\0")
        while True:
            while b"\0" not in self.rest:
                part = os.read(self.back, 2**20)
                assert part, "the browser has ended"
                self.rest += part
            one, _, self.rest = self.rest.partition(b"\0")
            answer = json.loads(one)
            if answer.get("id") == self.count:
                assert "error" not in answer, answer
                return answer["result"]

    def value(self, script):
        return self.call("Runtime.evaluate", expression=script)["result"].get("value")

    def until(self, script, seconds=30):
        end = time.monotonic() + seconds
        while not self.value(script):
            assert time.monotonic() < end, (script, self.value("document.body.innerText"))
            time.sleep(0.02)

    def key(self, key, text=""):
        for kind in ("keyDown", "keyUp"):
            typed = {"text": text} if text and kind == "keyDown" else {}
            self.call("Input.dispatchKeyEvent", type=kind, key=key, **typed)

    def close(self):
        self.call("Browser.close")
        self.process.wait(30)
        os.close(self.to)
        os.close(self.back)


@pytest.mark.slow
@pytest.mark.skipif(not CHROMIUM, reason="no Chromium on this machine")
def test_keys_label_in_a_real_browser(flat, page, tmp_path):
    data, out = tmp_path / "d", tmp_path / "labels.csv"
    shutil.copytree(flat, data)
    (data / "blue-002.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    p = page(data, "--classes", "red,<b>green</b>", "--none-class", "other", "--out", out)
    browser = Browser(tmp_path / "profile")

    def shows(path):
        browser.until(f"!busy && document.getElementById('path').textContent === '{path}'")

    try:
        browser.call("Page.navigate", url=p.url)
        browser.until("typeof busy === 'boolean'")
        shows("blue-000.png")
        assert browser.value("document.getElementById('image').naturalWidth") == 14
        names = "[...document.querySelectorAll('#classes button')].map((b) => b.textContent).join()"
        assert browser.value(names) == "red1,<b>green</b>2,other0"
        browser.key("2")
        shows("blue-001.png")
        assert labels_of(out) == {"blue-000.png": "<b>green</b>"}
        browser.key("u")
        shows("blue-000.png")
        assert labels_of(out) == {"blue-000.png": ""}
        browser.key("1")
        shows("blue-001.png")
        browser.key("0")
        browser.until("!busy && state.labelled === 2")
        assert labels_of(out) == {"blue-000.png": "red", "blue-001.png": "other"}
        # the broken image was loaded ahead, so it is not shown; by arrow it says why
        shows("blue-003.png")
        browser.key("ArrowLeft")
        shows("blue-002.png")
        browser.until("document.getElementById('message').textContent.includes('cannot be read')")
        browser.key("1")  # no label
        browser.key("s", "s")
        shows("blue-003.png")
        browser.key("/", "/")
        for letter in "sky 1":
            browser.key(letter, letter)
        browser.key("Enter", "\r")
        shows("blue-004.png")
        assert labels_of(out)["blue-003.png"] == "sky 1" and len(rows_of(out)) == 3
        browser.key("s", "s")
        shows("blue-005.png")
        browser.key("3")
        shows("blue-006.png")
        assert labels_of(out)["blue-005.png"] == "sky 1"
        assert browser.value("document.getElementById('count').textContent").startswith("4 / 24")
        p.post("finish", {})
        p.thread.join()
        browser.key("1")
        browser.until("!document.getElementById('error').hidden")
        assert "has ended" in browser.value("document.getElementById('error').textContent")
        assert len(rows_of(out)) == 4
    finally:
        browser.close()


@pytest.mark.slow
@pytest.mark.skipif(not CHROMIUM, reason="no Chromium on this machine")
def test_a_key_labels_a_group_in_a_real_browser(flat, page, tmp_path):
    run = pretrain(str(flat), out=str(tmp_path / "run"), epochs=0, **SMALL).run
    out = tmp_path / "labels.csv"
    p = page(flat, "--run", run, "--clusters", 2, "--classes", "a,b", "--out", out)
    members = json.loads(p.get("group/0"))["images"]
    browser = Browser(tmp_path / "profile")
    try:
        browser.call("Page.navigate", url=p.url)
        browser.until("typeof busy === 'boolean' && !busy && ready && shown === 0")
        browser.key("g")
        browser.until("!busy && ready && group !== null && group.place === 0")
        thumbs = "document.querySelectorAll('#grid img')"
        assert browser.value(f"[...{thumbs}].filter((i) => i.naturalWidth === 14).length") == len(
            members
        )
        browser.value("document.querySelector('#grid button').click()")  # does not belong
        browser.key("1")
        browser.until("!busy && ready && group.place === 1")
        assert labels_of(out) == {p.item(n)["path"]: "a" for n in members[1:]}
        browser.key("u")
        browser.until("!busy && ready && group.place === 0")
        assert set(labels_of(out).values()) == {""}
        browser.key("2")
        browser.until("!busy && ready && group.place === 1")
        browser.key("g")
        browser.until("!busy && ready && group === null")
        assert labels_of(out) == {p.item(n)["path"]: "b" for n in members}
    finally:
        browser.close()
