"""What a person at a terminal sees (a real one, of the system), and what a pipe or a file gets."""

import os
import re
import struct
import sys

import pytest
from tiny_runs import TINY_FINETUNE

from passl_mae import terminal
from passl_mae.engine.progress import summary

fcntl = pytest.importorskip("fcntl", reason="pseudo-terminals are Unix's")
pty = pytest.importorskip("pty", reason="pseudo-terminals are Unix's")
termios = pytest.importorskip("termios", reason="pseudo-terminals are Unix's")

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
WITHIN = re.compile(r"\[Iter \d+/\d+\]")


def on_terminal(command: list[str], columns: int = 200, **env: str) -> tuple[str, int]:
    """(all that the command wrote to a terminal of so many columns, its exit code)."""
    child, master = pty.fork()
    if child == 0:
        try:
            fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
            os.chdir(ROOT)
            inherited = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "TERM")}
            own = {"TERM": "xterm", "PYTHONPATH": ROOT, **env}
            os.execve(sys.executable, [sys.executable, *command], {**inherited, **own})
        finally:
            os._exit(127)
    written = b""
    while True:
        try:
            piece = os.read(master, 1 << 16)
        except OSError:  # Linux's way to say that the other end is closed
            break
        if not piece:
            break
        written += piece
    _, status = os.waitpid(child, 0)
    os.close(master)
    return written.decode("utf-8"), os.WEXITSTATUS(status)


def screen(written: str) -> list[str]:
    """The lines that are left on a terminal: carriage returns overwrite, colours do not show."""
    lines = [""]
    row = column = 0
    for token in re.findall(r"\x1b\[\d*[A-Za-z]|.|\n", written, flags=re.DOTALL):
        if token == "\n":
            row += 1
            lines += [""] * (row == len(lines))
        elif token == "\r":
            column = 0
        elif token == "\x1b[A":
            row -= 1
        elif token.startswith("\x1b"):
            assert token.endswith("m"), f"unknown control sequence {token!r}"
        else:
            line = lines[row].ljust(column)
            lines[row], column = line[:column] + token + line[column + 1 :], column + 1
    return [line.rstrip() for line in lines]


def test_bars_and_lines_do_not_garble_one_another(write_config, tmp_path):
    settings = {**TINY_FINETUNE, "Global": {**TINY_FINETUNE["Global"], "print_batch_step": 1}}
    config = write_config(settings)
    written, code = on_terminal(["tools/train_finetune.py", "-c", str(config)])
    assert code == 0, written[-3000:]
    for text in ("epoch 1/2", "epoch 2/2", "run eta 0:00", "evaluation"):
        assert text in written
    assert not WITHIN.search(written)  # the bar says what the step lines do

    log = (tmp_path / "run/train.log").read_text(encoding="utf-8").splitlines()
    assert len([line for line in log if WITHIN.search(line)]) == 8
    expected = [line.rstrip() for line in log if not WITHIN.search(line)]
    assert [line for line in screen(written) if line] == [line for line in expected if line]
    assert not CONTROL.search("\n".join(log))


def test_a_pipe_gets_the_same_lines_as_the_file_and_nothing_else(write_config, run_tool, tmp_path):
    run = run_tool("train_finetune.py", "-c", write_config(TINY_FINETUNE))
    assert run.returncode == 0 and run.stdout == (tmp_path / "run/train.log").read_text()
    assert not CONTROL.search(run.stdout + run.stderr) and "%|" not in run.stderr

    # The table at the end, from what else the run says.
    table = run.stdout.split("summary of the run\n")[1].splitlines()
    values = {line.split()[0]: line for line in table}
    metrics = [line.split('"eval_top1": ')[1] for line in (tmp_path / "run/metrics.jsonl").open()]
    top1 = [float(text.split(",")[0]) for text in metrics]
    best = max(top1)
    assert values["eval_top1"].split("  ")[-1].strip() == (
        f"last {top1[-1]:.4f}, best {best:.4f} (epoch {top1.index(best) + 1})"
    )
    assert values["epochs"].endswith("2 (8 steps)")
    named = {line.split()[-1] for line in table[table.index(values["files"]) + 1 :]}
    there = {p.name + "/" * p.is_dir() for p in (tmp_path / "run").iterdir()}
    assert named == {name for name in there if not name.startswith(".")}
    assert {"mae_finetune.pdparams", "result.json", "metrics.jsonl", "checkpoints/"} <= named


def test_the_table_of_two_sessions_by_hand(tmp_path):
    (tmp_path / "a.bin").write_bytes(bytes(1_500))
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/b.bin").write_bytes(bytes(2_340_000))
    (tmp_path / ".lock").touch()
    rows = [
        {"epoch": 1, "train_loss": 0.5, "eval_top1": 0.25, "seconds": 10.0, "ips": 100.0},
        {"epoch": 2, "train_loss": 0.4, "seconds": 10.0, "ips": 100.0},
        {"epoch": 3, "train_loss": 0.45, "eval_top1": 0.2, "seconds": 80.0, "ips": 25.0},
    ]
    assert summary(95.4, 3, 60, rows, {"top1": 0.125}, tmp_path) == [
        ("time", "0:01:35 in this session; steps of all epochs: 0:01:40"),
        ("epochs", "3 (60 steps)"),
        ("images/s", "40.0 (all ranks)"),  # (1000 + 1000 + 2000) / 100
        ("train_loss", "last 0.4500, best 0.4000 (epoch 2)"),
        ("eval_top1", "last 0.2000, best 0.2500 (epoch 1)"),
        ("test_top1", "0.1250"),
        ("files", f"in {tmp_path}"),
        ("", "   1.5 kB  a.bin"),
        ("", "   2.3 MB  folder/"),
    ]


BARS = """
import sys
from passl_mae import terminal
for item in terminal.shown(range(3), "counting", "thing"):
    terminal.write_line(f"line {item}", sys.stdout)
print(terminal.paint("careful", "yellow", sys.stdout))
"""


def test_no_color_and_a_dumb_terminal_are_honoured():
    written, _ = on_terminal(["-c", BARS])
    assert "counting: " in written and "\x1b[33mcareful\x1b[0m" in written
    lines = ["line 0", "line 1", "line 2", "careful"]
    assert [line for line in screen(written) if line] == lines

    written, _ = on_terminal(["-c", BARS], NO_COLOR="1")
    assert "counting: " in written and "\x1b[33m" not in written
    written, _ = on_terminal(["-c", BARS], columns=0)  # a terminal that does not know its width
    assert "counting: " in written and [line for line in screen(written) if line] == lines
    for env in ({"TERM": "dumb"}, {"PADDLE_TRAINER_ID": "1"}):
        written, _ = on_terminal(["-c", BARS], **env)
        assert "counting" not in written
    written, _ = on_terminal(["-c", BARS], TERM="dumb")
    assert written.replace("\r\n", "\n").splitlines() == lines


def test_errors_of_commands_are_red_on_a_terminal_only(run_tool):
    command = ["tools/evaluate.py", "-c", "absent.yaml"]
    assert on_terminal(command)[0].startswith("\x1b[31merror:\x1b[0m ")
    assert on_terminal(command, NO_COLOR="1")[0].startswith("error: ")
    assert run_tool("evaluate.py", "-c", "absent.yaml").stderr.startswith("error: ")


def test_a_bar_needs_both_streams_on_a_terminal(monkeypatch):
    class Stream:
        def __init__(self, tty: bool):
            self.isatty = lambda: tty

    monkeypatch.delenv("TERM", raising=False)
    for out in (True, False):
        for err in (True, False):
            monkeypatch.setattr(sys, "stdout", Stream(out))
            monkeypatch.setattr(sys, "stderr", Stream(err))
            watched = terminal.watched()
            monkeypatch.undo()
            monkeypatch.delenv("TERM", raising=False)
            assert watched is (out and err)
