"""Commands in this process: their JSON document, or their error."""

import json

import pytest

from unfreeze.cli.main import main


@pytest.fixture
def run_json(capsys):
    """`run_json(*words)`: the JSON document of a command that must succeed."""

    def run(*words):
        capsys.readouterr()
        code = main([*map(str, words), "--json"])
        captured = capsys.readouterr()
        assert code == 0, captured.err
        return json.loads(captured.out)

    return run


@pytest.fixture
def fails(capsys):
    """`fails(code, *words)`: the error of a command that must fail with that exit code."""

    def run(code, *words):
        capsys.readouterr()
        assert main([*map(str, words)]) == code
        return capsys.readouterr().err

    return run
