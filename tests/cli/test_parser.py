"""Flags come from the settings; what was typed reaches them, and nothing else does."""

import shlex

import pytest

from unfreeze.cli.parser import command_parser, help_text, overview, parse, typed_values
from unfreeze.cli.registry import EXAMPLES, SETTINGS, settings_class
from unfreeze.config.field import settings_of
from unfreeze.errors import UsageError


@pytest.mark.parametrize("verb", SETTINGS)
def test_every_knob_is_in_the_help(verb):
    text = command_parser(verb).format_help()
    for name, (spec, _, _) in settings_of(settings_class(verb)).items():
        assert (name.upper() if spec.positional else f"  {spec.flag(name)}") in text


def test_only_what_was_typed_is_passed_on():
    given = typed_values("pretrain", ["pics", "--nmb-crops", "2", "6", "--json", "--out=r"])
    assert given == {"data": ["pics"], "nmb_crops": "2 6", "json": "true", "out": "r"}


def test_file_stands_between_defaults_and_command_line(tmp_path):
    config = tmp_path / "c.toml"
    config.write_text('epochs = 7\nnmb-crops = [2, 4]\ntemperature = 0.2\ndata = "pics"\n')
    settings = parse("pretrain", ["--config", str(config), "--epochs", "9"])
    assert (settings.epochs, settings.nmb_crops) == (9, (2, 4))
    assert (settings.temperature, settings.data, settings.epsilon) == (0.2, ("pics",), None)


def test_an_unknown_key_in_the_file_is_refused(tmp_path):
    config = tmp_path / "c.toml"
    config.write_text("epoch = 7\n")
    with pytest.raises(UsageError) as caught:
        parse("pretrain", ["pics", "--config", str(config)])
    assert "epochs" in caught.value.next_step


@pytest.mark.parametrize(
    ("words", "resume"),
    [
        (["--resume", "pics"], "yes"),
        (["pics", "--resume"], "yes"),
        (["--resume", "auto", "pics"], "auto"),
        (["--resume=auto", "pics"], "auto"),
        (["pics", "--resume", "--json"], "yes"),
        (["pics"], None),
    ],
)
def test_resume_may_stand_alone(words, resume):
    settings = parse("pretrain", words)
    assert (settings.resume, settings.data) == (resume, ("pics",))


def test_words_and_flags_may_mix():
    settings = parse("evaluate", ["run", "--split", "val", "pics", "--json"])
    assert (settings.run, settings.data, settings.split) == ("run", ("pics",), "val")


def test_the_references_flags_keep_underscores_take_values_and_know_dashes():
    words = ["--nmb_crops", "2", "6", "--use_fp16", "off", "--warmup-epochs", "0"]
    words += ["--local-rank=1", "--json"]
    given = typed_values("swav", words)
    assert given == {
        "nmb_crops": "2 6",
        "use_fp16": "off",
        "warmup_epochs": "0",
        "local_rank": "1",
        "json": "true",
    }
    settings = parse("swav", words)
    assert (settings.use_fp16, settings.nmb_crops, settings.json) == (False, (2, 6), True)


def test_several_images_with_spaces_in_their_names():
    settings = parse("predict", ["run", "a b.jpg", "--batch-size", "2", "c,d.jpg"])
    assert settings.images == ("a b.jpg", "c,d.jpg")


def test_what_is_not_derived_says_so_instead_of_auto():
    shown = " ".join(command_parser("finetune").format_help().split())
    assert "at most N training images [all]" in shown
    assert "training images of each class [all]" in shown
    assert "fraction of the training images [all]" in shown
    assert "column `group`, if any) --" in shown
    assert "[off]" in " ".join(command_parser("pretrain").format_help().split())
    assert parse("finetune", ["pics", "--limit", "all"]).limit is None
    assert parse("pretrain", ["pics", "--keep-every", "off"]).keep_every is None


def test_lists_of_numbers_take_spaces_or_commas():
    assert parse("finetune", ["pics", "--mean", "0.5,0.4,0.3"]).mean == (0.5, 0.4, 0.3)
    assert parse("finetune", ["pics", "--mean", "0.5", "0.4", "0.3"]).mean == (0.5, 0.4, 0.3)


@pytest.mark.parametrize(
    ("verb", "words", "said"),
    [
        ("pretrain", ["pics", "--epoch", "3"], "--epochs"),
        ("pretrain", ["pics", "--nmb-prototype=3"], "--nmb-prototypes"),
        ("pretrain", ["pics", "--epochs", "many"], "an integer"),
        ("pretrain", ["pics", "--epochs"], "--epochs"),
        ("pretrain", ["pics", "--optimizer", "adam"], "adamw"),
        ("pretrain", [], "needs DATA"),
        ("evaluate", ["run"], "needs DATA"),
        ("summary", ["resnet18", "more"], "more"),
        ("pretrain", [], "needs DATA"),
        ("predict", ["run"], "needs IMAGES"),
        ("report", ["run", "--overwrite"], "--overwrite"),
        ("swav", ["--nmb_prototype", "3"], "Did you mean --nmb_prototypes?"),
        ("swav", ["--use_fp16"], "--use_fp16"),
        ("swav", ["--use_fp16", "perhaps"], "--use_fp16 takes true or false"),
        ("swav", ["--feat_dim", "0"], "--feat_dim must be at least 2"),
        ("swav", ["pics"], "pics"),
        ("pretrain", ["pics", "--recipe", "swav-300ep"], "swav-200ep"),
    ],
)
def test_wrong_use_names_the_way_out(verb, words, said):
    with pytest.raises(UsageError) as caught:
        parse(verb, words)
    assert said in str(caught.value)


@pytest.mark.parametrize("verb", SETTINGS)
@pytest.mark.parametrize("width", [60, 80])
def test_help_keeps_to_its_width_and_its_examples_are_understood(verb, width):
    text = help_text(verb, width)
    assert max(map(len, text.splitlines())) <= width
    assert all(
        spec.flag(name) in text
        for name, (spec, _, _) in settings_of(settings_class(verb)).items()
        if not spec.positional
    )
    for example in EXAMPLES[verb]:
        told, *words = shlex.split(example)
        assert told == verb and parse(verb, words)


@pytest.mark.parametrize("width", [60, 80])
def test_the_overview_keeps_to_its_width(width):
    assert max(map(len, overview(width).splitlines())) <= width


@pytest.mark.parametrize("verb", ["pretrain", "finetune", "compare"])
def test_what_everybody_needs_comes_first(verb):
    """Within 25 lines of a terminal: what to write, and the options that most runs set."""
    lines = help_text(verb, 80).splitlines()
    first = lines.index("basic options:")
    assert lines.index("", first) <= 25 and lines[first + 1].split()[0] == "--out"


def test_no_word_of_help_is_broken():
    wide, narrow = (help_text("finetune", width).split() for width in (200, 60))
    assert set(narrow) - {"\\"} <= set(wide)
