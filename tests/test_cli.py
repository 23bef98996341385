"""Whose mistake an error is decides how it is shown."""

import argparse
import sys

import paddle
import pytest

from passl_mae import cli


def run(monkeypatch, error):
    def main(args: argparse.Namespace) -> None:
        raise error

    monkeypatch.setattr(sys, "argv", ["tool"])
    cli.run(main, cli.make_parser("a tool"))


def test_a_users_mistake_is_one_line(monkeypatch, capsys):
    with pytest.raises(SystemExit) as stopped:
        run(monkeypatch, ValueError("first\n   second"))
    assert stopped.value.code == 2
    assert capsys.readouterr().err == "error: first second\n"


def test_an_interruption_is_one_word(monkeypatch, capsys):
    with pytest.raises(SystemExit) as stopped:
        run(monkeypatch, KeyboardInterrupt())
    assert stopped.value.code == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_an_error_of_paddles_core_keeps_its_traceback(monkeypatch):
    with pytest.raises(ValueError, match="Broadcast"):
        run(monkeypatch, ValueError("(InvalidArgument) Broadcast (at /paddle/paddle/phi/x.cc:1)"))


def test_an_error_raised_in_paddles_python_keeps_its_traceback(monkeypatch):
    def main(args: argparse.Namespace) -> None:
        paddle.optimizer.SGD(learning_rate=None)

    monkeypatch.setattr(sys, "argv", ["tool"])
    with pytest.raises(ValueError, match="learning_rate"):
        cli.run(main, cli.make_parser("a tool"))


def test_a_checkout_below_a_folder_named_paddle_changes_nothing(monkeypatch, capsys, tmp_path):
    script = tmp_path / "paddle" / "tool.py"
    script.parent.mkdir()
    script.write_text("def main(args):\n    raise ValueError('mine')\n", encoding="utf-8")
    scope: dict = {}
    exec(compile(script.read_text(encoding="utf-8"), str(script), "exec"), scope)
    monkeypatch.setattr(sys, "argv", ["tool"])
    with pytest.raises(SystemExit):
        cli.run(scope["main"], cli.make_parser("a tool"))
    assert capsys.readouterr().err == "error: mine\n"
