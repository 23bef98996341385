"""Makes both notebooks from `mae_cifar10.source.md`, so that they cannot drift apart.

    python notebooks/build.py            # new text; the outputs stay (the code must be the same)
    python notebooks/build.py --execute  # runs the code, once for both, and keeps its outputs

In the source, `<!-- zh -->` and `<!-- en -->` begin a text in either language, and a comment
`# Chinese || English` in a block of Python becomes the one or the other.
"""

from __future__ import annotations

import argparse
import base64
import io
import re
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
SOURCE = FOLDER / "mae_cifar10.source.md"
NOTEBOOKS = {"zh": FOLDER / "mae_cifar10.ipynb", "en": FOLDER / "mae_cifar10_en.ipynb"}
COMMENT = re.compile(r"# (?P<zh>[^#\n]+?) \|\| (?P<en>[^#\n]+)$", re.MULTILINE)
PART = re.compile(
    r"^<!-- zh -->\n(?P<zh>.*?)^<!-- en -->\n(?P<en>.*?)(?=^```python$|^<!-- zh -->$|\Z)"
    r"|^```python\n(?P<code>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


def cells(language: str, source: str | None = None) -> list[tuple[str, str]]:
    """(kind, text) of each cell: "markdown" or "code"."""
    found = []
    for part in PART.finditer(source or SOURCE.read_text(encoding="utf-8")):
        if part["code"] is not None:
            code = COMMENT.sub(lambda match: f"# {match[language]}", part["code"])
            found.append(("code", code.strip()))
        else:
            found.append(("markdown", part[language].strip()))
    return found


def notebook(language: str, outputs: list[dict] | None = None):
    """The notebook of a language; `outputs`: executed code cells to take results from."""
    import nbformat.v4 as v4

    made, executed = [], iter(outputs or ())
    for number, (kind, text) in enumerate(cells(language)):
        if kind == "markdown":
            cell = v4.new_markdown_cell(text)
        else:
            cell = v4.new_code_cell(text)
            if outputs is not None:
                old = next(executed)
                cell.outputs, cell.execution_count = joined(old.outputs), old.execution_count
        cell.id = f"cell-{number:02d}"  # nbformat's own are random
        made.append(cell)
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return v4.new_notebook(cells=made, metadata={"kernelspec": kernel})


def execute(made) -> None:
    """Runs the cells in a Jupyter kernel, in the notebooks' folder."""
    from nbclient import NotebookClient

    client = NotebookClient(
        made, timeout=3600, record_timing=False, resources={"metadata": {"path": str(FOLDER)}}
    )
    client.execute()
    for cell in code_cells(made):
        cell.outputs = [small(output) for output in cell.outputs if wanted(output)]


def code_cells(made) -> list:
    return [cell for cell in made.cells if cell.cell_type == "code"]


def wanted(output) -> bool:
    """Not what libraries grumble on the error stream."""
    return output.output_type != "stream" or output.name == "stdout"


def bare(code: str) -> str:
    """Without comments (no text in the code holds the sign that begins one)."""
    return re.sub(r"\s*#.*", "", code)


def joined(outputs: list) -> list:
    """What was printed in pieces, as one piece."""
    result: list = []
    for output in outputs:
        streams = result and result[-1].output_type == output.output_type == "stream"
        if streams and result[-1].name == output.name:
            result[-1].text += output.text
        else:
            result.append(output.copy())
    return result


def small(output):
    """A picture in 256 colours: a third of the bytes, and no difference to the eye."""
    from PIL import Image

    png = output.get("data", {}).get("image/png")
    if png is not None:
        picture = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
        stream = io.BytesIO()
        picture.quantize(256, dither=Image.Dither.NONE).save(stream, "PNG", optimize=True)
        output.data["image/png"] = base64.b64encode(stream.getvalue()).decode()
    return output


def main() -> None:
    import nbformat

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--execute", action="store_true", help="run the code anew")
    args = parser.parse_args()
    if args.execute:
        done = notebook("zh")
        execute(done)
    else:
        done = nbformat.read(NOTEBOOKS["zh"], as_version=4)
        code = [bare(text) for kind, text in cells("zh") if kind == "code"]
        if [bare(cell.source) for cell in code_cells(done)] != code:
            sys.exit("error: the code has changed, so its outputs are old: give --execute")
    for language, path in NOTEBOOKS.items():
        made = notebook(language, code_cells(done))
        nbformat.validate(made)
        path.write_text(nbformat.writes(made) + "\n", encoding="utf-8")
        print(f"wrote {path.name}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
