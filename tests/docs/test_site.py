"""The built site: what people search for finds the page that answers it, offline.

The strict build itself is part of `make check`; it fails for a link or an anchor that is nowhere.
"""

import html
import json
import math
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow  # a build of all pages and of the reference: 5 to 10 s

ROOT = Path(__file__).parents[2]
# what people type into a search box, and the page that answers it
WANTED = {
    "self-supervised pretraining on your own images": "guides/self-supervised-pretraining.html",
    "SwAV in PyTorch": "guides/swav-pytorch.html",
    "fine-tune ResNet-50 on CIFAR-10": "guides/finetune-resnet50-cifar10.html",
    "freeze layers in PyTorch": "guides/freeze-layers.html",
    "freeze batch norm": "guides/freeze-batch-norm.html",
    "fine-tune BERT on your own texts": "guides/finetune-bert.html",
    "segmentation with few masks": "guides/segmentation-few-masks.html",
    "find broken images and duplicates": "guides/broken-images-duplicates.html",
    "find wrong labels": "guides/wrong-labels.html",
    "deploy with ONNX": "guides/deploy-onnx.html",
    "exact resume": "how/exact-resume.html",
    "feature cache": "how/feature-cache.html",
    "CUDA out of memory": "TROUBLESHOOTING.html",
    "loss stays at ln K": "TROUBLESHOOTING.html",
    "strict=False loads nothing": "TROUBLESHOOTING.html",
    "licence of weights": "WEIGHTS.html",
    "torchsummary": "guides/coming-from-tutorials.html",
    "exit codes": "COMMANDS.html",
}
KOREAN = dict.fromkeys(("자기지도 사전 학습", "미세 조정", "레이어 동결"), "guides/start.ko.html")
TITLE = 1_000  # Material's boost of a title
STOP = {"in", "on", "with", "and", "your", "own", "the", "of", "at"}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    out = tmp_path_factory.mktemp("site")
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(out)]
    quiet = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, env=quiet)
    assert (built.returncode, built.stdout + built.stderr) == (0, "")
    return out


def stem(word):
    """A word without its commonest endings, as a search index keeps it."""
    return re.sub(r"(ing|ed|es|s|e)$", "", word) if len(word) > 3 else word


def terms(text):
    """Words as the index splits them (at spaces, hyphens and punctuation), without stop words."""
    words = re.split(r"[\s\-.,:;()`'\"=/]+", html.unescape(re.sub(r"<[^>]+>", " ", text)).lower())
    return [stem(word) for word in words if word and word not in STOP]


class Search:
    """BM25 over the entries of a built index, a title counting as Material's search counts it."""

    def __init__(self, entries):
        self.entries = [
            (e["location"], Counter(terms(e["title"])), terms(e["text"])) for e in entries
        ]
        self.texts = [Counter(text) for _, _, text in self.entries]
        self.boosts = [entry.get("boost", 1) for entry in entries]
        self.mean = sum(len(text) for *_, text in self.entries) / len(self.entries)
        self.having = Counter(t for _, title, text in self.entries for t in {*title, *text})

    def best(self, phrase):
        """Location of the entry with the highest score of those with every word, else of all."""
        wanted = terms(phrase)
        scores = {}
        for i, (location, title, text) in enumerate(self.entries):
            counts = self.texts[i]
            matched = [t for t in wanted if t in title or t in counts]
            length = 0.25 + 0.75 * len(text) / self.mean
            score = 0.0
            for term in matched:
                rarity = math.log(1 + len(self.entries) / self.having[term])
                in_title = 2.2 * title[term] / (title[term] + 1.2 * (0.25 + 0.75 * len(title) / 4))
                in_text = 2.2 * counts[term] / (counts[term] + 1.2 * length)
                score += rarity * (TITLE * in_title + in_text)
            scores[location] = (len(matched) == len(wanted), self.boosts[i] * score)
        return max(scores, key=scores.__getitem__)


@pytest.fixture(scope="module")
def search(site):
    return Search(json.loads((site / "search/search_index.json").read_text())["docs"])


@pytest.mark.parametrize("phrase", WANTED)
def test_a_phrase_finds_its_page(search, phrase):
    assert search.best(phrase).partition("#")[0] == WANTED[phrase]


@pytest.mark.skipif(not shutil.which("node"), reason="the site's own search runs in node")
def test_the_search_of_the_site_finds_them_too(site):
    words = ["node", str(Path(__file__).parent / "search_worker.js"), str(site)]
    answer = subprocess.run(
        [*words, json.dumps([*WANTED, *KOREAN, "qqqzzz"])],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    found = [location.partition("#")[0] for location in json.loads(answer)]
    assert found == [*WANTED.values(), *KOREAN.values(), ""]


@pytest.mark.parametrize("phrase", [p for p, page in WANTED.items() if page.startswith("guides")])
def test_a_guide_has_the_phrase_in_a_heading(site, phrase):
    page = (site / WANTED[phrase]).read_text()
    headings = terms(" ".join(re.findall(r"<h[1-6][^>]*>(.*?)</h[1-6]>", page, re.DOTALL)))
    assert set(terms(phrase)) <= set(headings)


def test_nothing_is_loaded_from_elsewhere(site):
    """Scripts, styles, fonts and images of every page come from the site itself."""
    loaded = re.compile(
        r"<(?:script|img|iframe|link)\b[^>]*?\b(?:src|href)=\"?(https?://[^\"\s>]+)"
    )
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 35
    assert {page.name: loaded.findall(page.read_text()) for page in pages} == {
        page.name: [] for page in pages
    }


def test_outside_links_are_shown_as_paths(site):
    page = (site / "EXTENDING.html").read_text()
    assert "../src/" not in page
    assert "<code>src/unfreeze/training/trainer.py</code>" in page


def test_every_command_has_its_reference(site):
    python = (site / "reference/python.html").read_text()
    for name in ("pretrain", "finetune", "evaluate", "predict", "compare", "demo", "scan"):
        assert f'id="unfreeze.{name}"' in python
    for name in ("sinkhorn", "swapped_prediction_loss", "multicrop", "LARC"):
        assert re.search(rf'id="unfreeze\.[a-z_.]*{name}"', python)
