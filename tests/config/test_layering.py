import math
import os
import tomllib
from pathlib import Path

import numpy as np
import pytest

from unfreeze.cli.registry import SETTINGS, settings_class
from unfreeze.config.commands import PredictSettings, ShowSettings
from unfreeze.config.field import settings_of, split_type
from unfreeze.config.finetune import FinetuneSettings
from unfreeze.config.layering import as_dict, build, load_settings, to_toml
from unfreeze.config.pretrain import PretrainSettings
from unfreeze.config.shared import data_name
from unfreeze.errors import UsageError
from unfreeze.text import as_text


def test_a_place_is_one_value_whatever_its_name_holds():
    for given in ("my photos, 2019", Path("my photos, 2019"), ["my photos, 2019"]):
        settings = build(PretrainSettings, {"data": given})
        assert settings.data == ("my photos, 2019",)
        written = to_toml(as_dict(settings), {})
        assert 'data = "my photos, 2019"' in written
        assert build(PretrainSettings, tomllib.loads(written)).data == settings.data
    several = build(PretrainSettings, {"data": ["a b", "c"]})
    assert tomllib.loads(to_toml(as_dict(several), {}))["data"] == ["a b", "c"]


def test_what_may_be_a_password_is_not_spoken():
    assert data_name("a?b.zip") == "a?b.zip"
    assert data_name(["x", "https://host/p.zip?token=secret"]) == "x, https://host/p.zip"


def test_text_and_values_become_one_type():
    text = build(
        PretrainSettings,
        {
            "epochs": "5",
            "size_crops": "32 16",
            "base_lr": "auto",
            "temperature": "0.2",
            "overwrite": "true",
        },
    )
    value = build(
        PretrainSettings,
        {
            "epochs": 5,
            "size_crops": [32, 16],
            "base_lr": None,
            "temperature": 0.2,
            "overwrite": True,
        },
    )
    assert text == value and text.size_crops == (32, 16) and text.base_lr is None


def test_resume_is_a_flag_in_python_too():
    assert build(PretrainSettings, {"resume": True}).resume == "yes"
    assert build(PretrainSettings, {"resume": False}).resume is None


@pytest.mark.parametrize(
    "given, words",
    [
        ({"epoch": 5}, "Did you mean 'epochs'"),
        ({"epochs": "many"}, "an integer"),
        ({"epochs": 2.5}, "an integer"),
        ({"epochs": -1}, "at least 0"),
        ({"epochs": True}, "an integer"),
        ({"optimizer": "lion"}, "larc, adamw, sgd"),
        ({"overwrite": "perhaps"}, "true or false"),
        ({"base_lr": "nan"}, "at least 0"),
    ],
)
def test_what_cannot_be_is_refused_in_words(given, words):
    with pytest.raises(UsageError) as error:
        build(PretrainSettings, given)
    assert words in str(error.value) and error.value.exit_code == 2


def test_file_below_keywords_above_and_a_runs_own_file_reads_back(tmp_path):
    path = tmp_path / "config.toml"
    settings = build(FinetuneSettings, {"data": "x", "epochs": 7, "mean": (0.5, 0.5, 0.5)})
    path.write_text(to_toml(as_dict(settings), {"facts": {"threads": 2}, "reasons": {"lr": "a\n"}}))
    assert as_dict(load_settings(FinetuneSettings, {"config": str(path)})) == as_dict(settings)
    assert load_settings(FinetuneSettings, {"config": str(path), "epochs": 9}).epochs == 9
    assert tomllib.loads(path.read_text())["facts"]["threads"] == 2
    ranged = build(FinetuneSettings, {"data": "x", "range": "auto"})  # a choice, not "derived"
    path.write_text(to_toml(as_dict(ranged), {}))
    assert load_settings(FinetuneSettings, {"config": str(path)}).range == "auto"


def test_kebab_case_and_unknown_keys_in_a_file(tmp_path):
    path = tmp_path / "c.toml"
    path.write_text("batch-size = 8\n")
    assert load_settings(PretrainSettings, {"config": str(path)}).batch_size == 8
    path.write_text("bach-size = 8\n")
    with pytest.raises(UsageError, match="batch_size"):
        load_settings(PretrainSettings, {"config": str(path)})
    with pytest.raises(UsageError, match="cannot be read"):
        load_settings(PretrainSettings, {"config": str(tmp_path / "none.toml")})


def test_a_resumed_run_takes_its_own_settings(tmp_path):
    (tmp_path / "config.toml").write_text(to_toml({"epochs": 11}, {}))
    resumed = load_settings(PretrainSettings, {"out": str(tmp_path), "resume": "yes", "seed": 3})
    assert resumed.epochs == 11 and resumed.seed == 3
    assert load_settings(PretrainSettings, {"out": str(tmp_path)}).epochs is None
    (tmp_path / "config.toml").write_text("epochs = 11\n")  # of some project
    with pytest.raises(UsageError, match=r"not the config\.toml of a run"):
        load_settings(PretrainSettings, {"out": str(tmp_path), "resume": "yes"})


def test_names_of_any_kind_stand_in_a_runs_file_and_read_back(tmp_path):
    raw = os.fsdecode(b"caf\xe9")
    odd = [raw, r"caf\xe9", 'a"b\nc\\', "강아지 🐶", "a\x1b\x7f\x85b", "'''", "true", "[x]", "~"]
    settings = build(FinetuneSettings, {"data": odd, "weights": f"./{raw}", "group_by": r"(\xe9)"})
    own = tmp_path / "config.toml"
    facts = {"classes": [as_text(raw)], "odd\nkey": math.inf}
    own.write_text(to_toml(as_dict(settings), {"facts": facts}), encoding="utf-8", newline="")
    again = load_settings(FinetuneSettings, {"out": str(tmp_path), "resume": "yes"})
    assert as_dict(again) == as_dict(settings)
    assert tomllib.loads(own.read_text(encoding="utf-8"))["facts"] == facts


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-8"])
def test_a_settings_file_of_any_editor(tmp_path, encoding):
    path = tmp_path / "s.toml"
    path.write_bytes("epochs = 9\r\ndata = 'é 🐶'\r\n".encode(encoding))
    settings = load_settings(PretrainSettings, {"config": path})
    assert settings.epochs == 9 and settings.data == ("é 🐶",)
    path.write_bytes("data = 'é'".encode("latin-1"))
    with pytest.raises(UsageError, match="not TOML"):
        load_settings(PretrainSettings, {"config": str(path)})


def test_every_path_has_its_home_expanded_wherever_it_comes_from(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "s.toml").write_text('out = "~/toml"\n')
    for verb in SETTINGS:
        cls = settings_class(verb)
        for name, (spec, kind, _) in settings_of(cls).items():
            if not spec.path:
                continue
            for given in ("~/x", Path("~/x"), b"~/x"):
                found = getattr(build(cls, {name: given}), name)
                assert found == ((f"{tmp_path}/x",) if split_type(kind)[1] else f"{tmp_path}/x")
    assert load_settings(PretrainSettings, {"config": "~/s.toml"}).out == f"{tmp_path}/toml"


def test_every_setting_that_names_a_file_says_so():
    """Their names are known: what is a path is expanded, compared and protected."""
    paths = {"data", "images", "labels", "split_from", "weights", "init", "test", "run", "config"}
    paths |= {"file", "undo", "out", "quarantine", "data_root", "data_path", "dump_path", "teacher"}
    for verb in SETTINGS:
        for name, (spec, _, _) in settings_of(settings_class(verb)).items():
            wanted = name in paths or spec.metavar in ("FILE", "DIR", "RUN")
            assert bool(spec.path) == wanted or (verb, name) == ("summary", "arch"), (verb, name)


def test_what_goes_through_a_list_is_a_list_and_what_is_no_path_is_refused(tmp_path):
    several = [Path("a"), b"b", "c d"]
    for given in (several, tuple(several), iter(several), (x for x in several)):
        assert build(PretrainSettings, {"data": given}).data == ("a", "b", "c d")
    assert build(PretrainSettings, {"size_crops": iter([9, 8])}).size_crops == (9, 8)
    assert build(FinetuneSettings, {"mean": np.array([0.5, 0.25, 0.5])}).mean == (0.5, 0.25, 0.5)
    for wrong in (np.zeros((2, 2)), 3, [None], {"a": 1}, {"a", "b"}, object(), [["a"]]):
        with pytest.raises(UsageError, match="takes a"):
            build(PretrainSettings, {"data": wrong})
    for name in ("a\0b", "\ud800"):
        with pytest.raises(UsageError, match="is not a valid file name"):
            build(PretrainSettings, {"out": name})
    with pytest.raises(UsageError, match="takes a string"):
        build(PretrainSettings, {"arch": object()})


def test_a_file_may_be_called_by_a_word_of_ours():
    assert build(PredictSettings, {"out": "auto"}).out == "auto"
    assert build(PretrainSettings, {"out": "auto", "init": "auto"}).out == "auto"
    assert build(ShowSettings, {"out": "auto"}).out is None  # as its help says
