"""Errors of a Python call name keywords, as a Python program has them."""

import pytest

import unfreeze
from unfreeze.config.commands import CompareSettings
from unfreeze.config.field import python_settings
from unfreeze.config.finetune import FinetuneSettings
from unfreeze.runs.python_call import flags_to_keywords

KNOWN = python_settings(FinetuneSettings) | python_settings(CompareSettings)


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        ("Add --out RUN, or --dry-run.", "Add out=RUN, or dry_run=True."),
        ("--out runs/a is not empty.", "out='runs/a' is not empty."),
        ("add --resume to resume or --overwrite to start again.",
         "add resume=True to resume or overwrite=True to start again."),
        ("--batch-size 1: it cannot learn.", "batch_size=1: it cannot learn."),
        ("Lower --batch-size, or add images.", "Lower batch_size, or add images."),
        ("Use --stem small.", "Use stem='small'."),
        ("Use --freeze stage:2, with --lr alone.", "Use freeze='stage:2', with lr alone."),
        ("--epochs takes a whole number, not 'x'.", "epochs takes a whole number, not 'x'."),
        ("Free to change: --data, --workers.", "Free to change: data, workers."),
        ("--no-such-flag stays.", "--no-such-flag stays."),
        ("Resume with: unfreeze finetune 'my data' --out runs/a --resume",
         "Resume with: unfreeze.finetune('my data', out='runs/a', resume=True)"),
        ("Start with: unfreeze pretrain photos --out runs/b --nmb-prototypes 30.",
         "Start with: unfreeze.pretrain('photos', out='runs/b', nmb_prototypes=30)."),
        ("Bring it with: unfreeze scan photos --undo moved --out RUN",
         "Bring it with: unfreeze.scan('photos', undo='moved', out=RUN)"),
        ("Which layers to unfreeze from an epoch on (with -: to freeze again)",
         "Which layers to unfreeze from an epoch on (with -: to freeze again)"),
        ("With --resume auto it starts or resumes.", "With resume='auto' it starts or resumes."),
        ("unfreeze swav --data_path d --epochs 3", "unfreeze swav --data_path d --epochs 3"),
        ("`unfreeze inspect` may recognise it.", "`unfreeze inspect` may recognise it."),
    ],
)  # fmt: skip
def test_flags_become_keywords(said, wanted):
    assert flags_to_keywords(said, KNOWN) == wanted


def test_errors_of_a_call_are_worded_so(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.toml").write_text("epochs = 3\n")
    with pytest.raises(unfreeze.UsageError) as raised:
        unfreeze.finetune("digits", out=str(tmp_path / "run"))
    text = str(raised.value)
    assert "--" not in text and "overwrite=True" in text and "resume=True" in text
    with pytest.raises(unfreeze.UsageError, match="epochs must be at least 1, not 0"):
        unfreeze.finetune("digits", epochs=0)
    with pytest.raises(unfreeze.UsageError) as raised:
        unfreeze.pretrain("digits", json=True)
    assert "for the command line" in str(raised.value)


def test_the_command_line_still_says_flags(tmp_path, capsys):
    from unfreeze.cli.main import main

    assert main(["finetune", "digits"]) == 2
    assert "Add --out RUN, or --dry-run." in capsys.readouterr().err
