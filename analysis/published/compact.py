"""`python -m analysis published compact`: the table of published end points that the project comes with, made anew."""

import csv
import hashlib
import io
import math
import re
from collections.abc import Sequence
from pathlib import Path

from analysis.published.points import COMPARED_STEPS, CURVES_HEADER, PublishedError, files_under, read_file
from analysis.published.sources import source_of
from bench.runs.contract import replacing

ONE_TASK = r"-(task\d+|mh|ph)$"  # names of tasks end so, those of means over tasks do not


def write_compact(path: Path, out: Path) -> None:
    """Writes the end points of a file of published numbers, or of a folder of them, to `out`."""
    text = compact_text(files_under(path))
    with replacing(out) as draft:
        draft.write_text(text, encoding="utf-8", newline="\n")


def compact_text(files: Sequence[Path]) -> str:
    """The end points of every method that is an agent here or an opponent, as a CSV file that says where it is from."""
    points = [
        point
        for file in files
        for point in read_file(file)
        if point.step in COMPARED_STEPS
        and point.method in source_of(point.source).methods
        and re.search(ONE_TASK, point.task)
    ]
    if not points:
        raise PublishedError(f"nothing to carry over from {', '.join(map(str, files))}: no known method of a source")
    points.sort(key=lambda point: (point.source, point.task, point.method, point.step))
    buffer = io.StringIO()
    buffer.write("# Published success rates: end of the offline phase, and after 200k, 500k and 1M online steps.\n")
    buffer.write("# Columns: analysis/published/points.py. Made by `python -m analysis published compact PATH` from:\n")
    for file in files:
        buffer.write(f"# {file.name}, SHA-256 {hashlib.sha256(file.read_bytes()).hexdigest()}\n")
    for name in sorted({point.source for point in points}):
        buffer.write(f"# {name}: {source_of(name).citation}. Licence: {source_of(name).licence}.\n")
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(CURVES_HEADER)
    for point in points:
        suite = re.sub(ONE_TASK, "", point.task)
        if not math.isnan(point.low):
            spread = f"ci95:[{point.low:.4f};{point.high:.4f}]"
        else:
            spread = "" if math.isnan(point.std) else f"std:{point.std:.4f}"
        writer.writerow(
            [point.source, suite, point.task, point.method, point.step, f"{point.mean:.4f}", spread, point.num_seeds]
        )
    return buffer.getvalue()
