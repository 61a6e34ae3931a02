import tomllib
from pathlib import Path

import pytest

from unfreeze.errors import UsageError
from unfreeze.settings.build import as_dict, build, layered, to_toml
from unfreeze.settings.finetune import FinetuneSettings
from unfreeze.settings.pretrain import PretrainSettings
from unfreeze.settings.shared import spoken


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
    assert spoken("a?b.zip") == "a?b.zip"
    assert spoken(["x", "https://host/p.zip?token=secret"]) == "x, https://host/p.zip"


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
        ({"epochs": "many"}, "whole number"),
        ({"epochs": 2.5}, "whole number"),
        ({"epochs": -1}, "at least 0"),
        ({"epochs": True}, "whole number"),
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
    assert as_dict(layered(FinetuneSettings, {"config": str(path)})) == as_dict(settings)
    assert layered(FinetuneSettings, {"config": str(path), "epochs": 9}).epochs == 9
    assert tomllib.loads(path.read_text())["facts"]["threads"] == 2
    ranged = build(FinetuneSettings, {"data": "x", "range": "auto"})  # a choice, not "derived"
    path.write_text(to_toml(as_dict(ranged), {}))
    assert layered(FinetuneSettings, {"config": str(path)}).range == "auto"


def test_kebab_case_and_unknown_keys_in_a_file(tmp_path):
    path = tmp_path / "c.toml"
    path.write_text("batch-size = 8\n")
    assert layered(PretrainSettings, {"config": str(path)}).batch_size == 8
    path.write_text("bach-size = 8\n")
    with pytest.raises(UsageError, match="batch_size"):
        layered(PretrainSettings, {"config": str(path)})
    with pytest.raises(UsageError, match="cannot be read"):
        layered(PretrainSettings, {"config": str(tmp_path / "none.toml")})


def test_a_resumed_run_takes_its_own_settings(tmp_path):
    (tmp_path / "config.toml").write_text(to_toml({"epochs": 11}, {}))
    resumed = layered(PretrainSettings, {"out": str(tmp_path), "resume": "yes", "seed": 3})
    assert resumed.epochs == 11 and resumed.seed == 3
    assert layered(PretrainSettings, {"out": str(tmp_path)}).epochs is None
    (tmp_path / "config.toml").write_text("epochs = 11\n")  # of some project
    with pytest.raises(UsageError, match="not the settings file of a run"):
        layered(PretrainSettings, {"out": str(tmp_path), "resume": "yes"})
