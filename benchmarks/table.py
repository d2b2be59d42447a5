"""Makes the Markdown tables of what `fastrnn bench` or a script beside this one has written with `--json FILE`.

    python benchmarks/table.py FILE                    # prints them all
    python benchmarks/table.py FILE --write README.md  # puts them where the README wants them

A README wants a table where it has the lines

    <!-- table: NAME -->
    <!-- end -->

with NAME made of the JSON's file name without .json, a slash, and one of: machine, infer, train, paused, summary; of
memory.py's: peaks, growth; of overhead.py's: calls; of torch_layers.py's: layers, parts; of lm/torch_baseline.py's:
speed; of lm/step_profile.py's: shares; of lm/recipes.py's: trained; of lm/ngram_ladder.py's: perplexity; of
lm/ladder.py's: rungs, orders; of lm/gradient_flow.py's: norms; of seq2seq/recipes.py's: trained, outputs; of
seq2seq/torch_baseline.py's: speed; of seq2seq/step_profile.py's: shares. What stands between the two lines is replaced;
tables of other files stay as they are.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import sys
from pathlib import Path
from typing import Any

from fastrnn.bench import report, shapes
from fastrnn.models import ladder
from fastrnn.output import as_markdown

_PEERS = ("fastrnn", "torch")
_PLACE = re.compile(r"^(<!-- table: (.+?) -->)$(.*?)^<!-- end -->$", re.MULTILINE | re.DOTALL)


def make_tables(document: report.Document) -> dict[str, str]:
    """The Markdown of each table by its name; those without rows are left out."""
    tables = {
        "infer": report.main_table(document, "infer"),
        "train": report.main_table(document, "train"),
        "paused": report.paused_table(document),
        "summary": report.summary_table(document),
    }
    texts = {name: as_markdown(table) for name, table in tables.items() if table[1]}
    return {"machine": report.describe(document)} | texts


def make_memory_tables(document: dict[str, Any]) -> dict[str, str]:
    """The same for what memory.py has written."""

    def mib(size: float) -> str:
        return f"{size / (1 << 20):.1f}"

    peaks = {(peak["shape"], peak["cell"]): peak for peak in document["peaks"]}
    header = ["T,B,I,H,L", *(f"{cell}: fastrnn, torch MiB, ratio" for cell in shapes.CELLS)]
    lines = [
        [shape]
        + [
            f"{mib(peak['fastrnn'])}, {mib(peak['torch'])}, {peak['fastrnn'] / peak['torch']:.2f}"
            for peak in (peaks[shape, cell] for cell in shapes.CELLS)
        ]
        for shape in dict.fromkeys(shape for shape, _ in peaks)
    ]
    growth = ", ".join(map(mib, document["growth"]))
    return {"peaks": as_markdown((header, lines)), "growth": growth}


def make_overhead_tables(document: dict[str, Any]) -> dict[str, str]:
    """The same for what overhead.py has written."""
    rows = document["microseconds"]
    kinds = list(next(iter(rows.values())))
    lines = [
        [cell, *(f"{median:.1f} ({low:.1f} to {high:.1f})" for low, median, high in (row[kind] for kind in kinds))]
        for cell, row in rows.items()
    ]
    return {"calls": as_markdown((["us", *kinds], lines))}


def make_torch_tables(document: dict[str, Any]) -> dict[str, str]:
    """The same for what torch_layers.py has written."""
    ratios = {
        (row["shape"], f"{row['cell'].upper()} {row['mode']}"): f"{row['torch_ms'] / row['fastrnn_ms']:.2f}"
        for row in document["rows"]
    }
    columns = [f"{cell.upper()} {mode}" for mode in shapes.MODES for cell in shapes.CELLS]
    lines = [
        [shape, *(ratios.get((shape, column), "-") for column in columns)]
        for shape in dict.fromkeys(shape for shape, _ in ratios)
    ]
    parts = {
        (row["shape"], row["cell"]): f"{row['parts_ms'] / row['fastrnn_ms']:.2f}"
        for row in document["rows"]
        if "parts_ms" in row
    }
    part_lines = [
        [shape, *(parts[shape, cell] for cell in shapes.CELLS)] for shape in dict.fromkeys(shape for shape, _ in parts)
    ]
    return {
        "layers": as_markdown((["T,B,I,H,L", *columns], lines)),
        "parts": as_markdown((["T,B,H", *(cell.upper() for cell in shapes.CELLS)], part_lines)),
    }


def _describe(shape: dict[str, Any]) -> str:
    return (
        f"{shape['layers']} x {shape['hidden']} {shape['cell'].upper()}, {shape['symbols']:,} symbols, "
        f"batch {shape['batch']}, {shape['bptt']} steps, {shape['optimizer']}"
    )


def make_baseline_tables(document: dict[str, Any]) -> dict[str, str]:
    """The same for what lm/torch_baseline.py has written."""
    header = ["model", "fastrnn tokens/s", "torch tokens/s", "ratio", "largest difference of losses"]
    lines = [
        [
            _describe(row),
            *(f"{row[peer]['tokens_per_second']:,} ± {row[peer]['spread']:.0%}" for peer in ("fastrnn", "torch")),
            f"{row['ratio']:.2f}",
            f"{row['loss_difference']:.0e}",
        ]
        for row in document["rows"].values()
    ]
    return {"speed": as_markdown((header, lines))}


def make_profile_tables(document: dict[str, Any]) -> dict[str, str]:
    """The same for what lm/step_profile.py has written."""
    rows = list(document["profile"].values())
    lines = [[_describe(row), *(f"{share:.1%}" for share in row["shares"].values())] for row in rows]
    return {"shares": as_markdown((["model", *rows[0]["shares"]], lines))}


def make_recipe_tables(document: dict[str, Any]) -> dict[str, str]:
    """The same for what lm/recipes.py has written."""
    history, results = document["history"], document["results"]
    header = ["recipe", "weights", "epochs", "minutes", "tokens/s", "valid loss", "test loss", "test perplexity"]
    seconds = sum(record["seconds"] for record in history)
    tokens = sum(record["seconds"] * record["tokens_per_second"] for record in history)
    line = [
        document["recipe"],
        f"{document['parameters']:,}",
        str(len(history)),
        f"{seconds / 60:.1f}",
        f"{tokens / seconds:,.0f}",
        *(f"{results[part]['loss']:.3f}" for part in ("valid", "test")),
        f"{results['test']['perplexity']:.2f}",
    ]
    return {"trained": as_markdown((header, [line]))}


def make_ngram_tables(document: dict[str, Any]) -> dict[str, str]:
    """The same for what lm/ngram_ladder.py has written."""
    header = ["order", "Kneser-Ney", "add-k (k)", "n-grams", "MB", "unseen", "s to count", "s to predict"]
    of = {(model["smoothing"], model["order"]): model for model in document["models"]}
    lines = []
    for order in sorted({order for _, order in of}):
        one, other = of["kneser_ney", order], of["add_k", order]
        lines.append(
            [
                str(order),
                f"{one['test_perplexity']:,.1f}",
                f"{other['test_perplexity']:,.1f} ({other['k']:g})",
                f"{one['entries'][-1]:,}",
                f"{one['bytes'][-1] / 1e6:.1f}",
                f"{one['unseen_in_test'][-1]:.1%}",
                f"{one['fit_seconds']:.1f}",
                f"{one['test_seconds']:.2f}",
            ]
        )
    return {"perplexity": as_markdown((header, lines))}


def make_ladder_tables(document: dict[str, Any]) -> dict[str, str]:
    """The same for what lm/ladder.py has written."""
    fields = [field.name for field in dataclasses.fields(ladder.Rung)]
    header, lines = ladder.table(ladder.Rung(**{name: rung[name] for name in fields}) for rung in document["rungs"])
    for key in ("threads", "commit"):  # `fastrnn lm ladder` writes neither
        if all(key in rung for rung in document["rungs"]):
            header = [*header, key]
            lines = [[*line, str(rung[key] or "-")] for line, rung in zip(lines, document["rungs"], strict=True)]
    orders = ladder.orders_table(ladder.Order(**order) for order in document["orders"])
    return {"rungs": as_markdown((header, lines)), "orders": as_markdown(orders)}


def make_flow_tables(document: dict[str, Any]) -> dict[str, str]:
    """The same for what lm/gradient_flow.py has written."""
    steps = [step for step in (1, 10, 50, 100, 200) if step <= document["flow"]["steps"]]
    header = ["model", "trained", *(f"{step} back" for step in steps)]
    lines = [
        [f"{name}, {state}", when, *(f"{row['norms'][state]['median'][0][step - 1]:.0e}" for step in steps)]
        for name, result in document["results"].items()
        for when, row in (("no", result["before"]), ("yes", result["after"]))
        for state in row["norms"]
    ]
    return {"norms": as_markdown((header, lines))}


def make_seq2seq_tables(document: dict[str, Any]) -> dict[str, str]:
    """The same for what seq2seq/recipes.py has written."""
    outputs = document["outputs"]
    figures = [name for name in outputs[0] if name not in ("beam", "unknown", "seconds")]
    lines = [
        [str(each["beam"]), each["unknown"], *(f"{each[name]:.4g}" for name in figures), f"{each['seconds']:.1f}"]
        for each in outputs
    ]
    return make_recipe_tables(document) | {"outputs": as_markdown((["beam", "unknown", *figures, "s"], lines))}


def make_seq2seq_speed_tables(document: dict[str, Any]) -> dict[str, str]:
    """The same for what seq2seq/torch_baseline.py has written."""
    header = ["model", "work", "per second", "fastrnn", "torch", "ratio", "another torch", "agreement"]
    lines = []
    for name, row in document["seq2seq"].items():
        works = {"training": row["training"]} | {f"beam {beam}": each for beam, each in row["decoding"].items()}
        for work, figures in works.items():
            unit = "tokens" if work == "training" else "sentences"
            speeds = [f"{figures[peer][f'{unit}_per_second']:,.1f} ± {figures[peer]['spread']:.0%}" for peer in _PEERS]
            if work == "training":
                remark = f"losses differ by {figures['loss_difference']:.0e} at most"
                others = f"{figures['ratio_padded']:.2f} without packing"
            else:
                remark = f"{figures['equal']:.1%} of {figures['sentences']} outputs equal"
                others = f"{figures['ratio_alone']:.2f} with one at a time"
            lines.append([name, work, unit, *speeds, f"{figures['ratio']:.2f}", others, remark])
    return {"speed": as_markdown((header, lines))}


def make_seq2seq_profile_tables(document: dict[str, Any]) -> dict[str, str]:
    """The same for what seq2seq/step_profile.py has written."""
    rows = document["seq2seq_profile"]
    parts = list(next(iter(rows.values()))["shares"])
    lines = [[part, *(f"{row['shares'][part]:.1%}" for row in rows.values())] for part in parts]
    return {"shares": as_markdown((["part", *rows], lines))}


def fill(text: str, stem: str, tables: dict[str, str]) -> str:
    """The text with the tables of this file in their places.

    Raises:
        ValueError: no place for any of them, a place for a table that the file lacks, or one without an end.
    """
    places = [match[2] for match in _PLACE.finditer(text)]
    begun = re.findall(r"^<!-- table: (.+?) -->$", text, re.MULTILINE)
    if places != begun:
        raise ValueError(f"each of the places {', '.join(begun)} must have an end, '<!-- end -->', got {len(places)}")
    wanted = [name.removeprefix(f"{stem}/") for name in places if name.startswith(f"{stem}/")]
    if not wanted:
        raise ValueError(f"there must be a line '<!-- table: {stem}/NAME -->', got none")
    if unknown := set(wanted) - tables.keys():
        raise ValueError(f"tables must be some of {', '.join(tables)}, got {', '.join(sorted(unknown))}")

    def replacement(match: re.Match[str]) -> str:
        name = match[2].removeprefix(f"{stem}/")
        return match[0] if name == match[2] else f"{match[1]}\n{tables[name]}\n<!-- end -->"

    return _PLACE.sub(replacement, text)


#: By what a document holds; those of `fastrnn bench` have "rows" and "seconds".
_SCRIPTS = (
    ({"peaks", "growth"}, make_memory_tables),
    ({"microseconds"}, make_overhead_tables),
    ({"rows", "packed_batch"}, make_torch_tables),
    ({"rows", "clip"}, make_baseline_tables),
    ({"profile"}, make_profile_tables),
    ({"recipe", "outputs"}, make_seq2seq_tables),
    ({"recipe", "results"}, make_recipe_tables),
    ({"models", "vocabulary"}, make_ngram_tables),
    ({"rungs", "orders"}, make_ladder_tables),
    ({"results", "flow"}, make_flow_tables),
    ({"seq2seq"}, make_seq2seq_speed_tables),
    ({"seq2seq_profile"}, make_seq2seq_profile_tables),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, metavar="FILE", help="the JSON of a run")
    parser.add_argument("--write", type=Path, metavar="README", help="the file whose tables are replaced")
    args = parser.parse_args()
    try:
        document = json.loads(args.file.read_text(encoding="utf-8"))
        for fields, make in _SCRIPTS:
            if isinstance(document, dict) and fields <= document.keys():
                tables = make(document)
                break
        else:
            tables = make_tables(report.read_json(args.file))
        if args.write is None:
            print("\n\n".join(tables.values()))
        else:
            text = args.write.read_text(encoding="utf-8")
            args.write.write_text(fill(text, args.file.stem, tables), encoding="utf-8")
    except (ValueError, OSError) as error:
        print(f"table.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
