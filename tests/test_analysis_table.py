"""One table in three formats: the same cells for programs and for people."""

import csv
import io
import math

from analysis.tables.table import Part, Table


def test_numbers_of_a_csv_are_as_long_as_asked_and_what_is_not_there_is_empty():
    table = Table(["a", "b", "c", "d", "e"], [["x, y", 1, 2 / 3, True, None], ["", 0, math.nan, False, -1.0]])
    assert table.csv() == 'a,b,c,d,e\n"x, y",1,0.666667,true,\n,0,,false,-1.000000\n'
    short = Table(["a"], [[1234567.0], [1e-9]], digits=".3g")
    assert list(csv.reader(io.StringIO(short.csv()))) == [["a"], ["1.23e+06"], ["1e-09"]]


def test_columns_of_markdown_line_up_and_parts_stand_behind_each_other():
    parts = [Part("0.20", "[0.10, 0.30]"), Part("-0.50", bold=True)]
    lines = Table(["agent", "score"], [["fql", parts], ["a_b", []]]).markdown().splitlines()
    assert lines[2] == "| fql   | 0.20 [0.10, 0.30] → **-0.50** |"
    assert lines[3] == "| a_b   | -                             |"
    assert {len(line) for line in lines} == {len(lines[0])}


def test_tabular_has_minus_signs_escaped_text_and_headings_between_rows():
    rows = [["a_b", [Part("-0.20", "[-0.30, 0.10]", bold=True)]], ["c", [Part("-")]], ["3-5", []]]
    lines = Table(["agent", "%"], rows, sections={0: "one", 2: ""}).latex(["a note, 5 %"]).splitlines()
    assert lines[1:] == [
        r"\begin{tabular}{lc}",
        r"\toprule",
        r"agent & \% \\",
        r"\midrule",
        r"\multicolumn{2}{l}{\textit{one}} \\",
        r"a\_b & \textbf{$-$0.20 [$-$0.30, 0.10]} \\",
        r"c & - \\",
        r"\midrule",
        r"3-5 & -- \\",
        r"\midrule",
        r"\multicolumn{2}{l}{\footnotesize a note, 5 \%} \\",
        r"\bottomrule",
        r"\end{tabular}",
    ]


def test_stacked_tabular_has_limits_below_numbers():
    parts = [Part("20", "[10, 30]", bold=True), Part("-0.50")]
    lines = Table(["task", "fql"], [["t", parts], ["u", [Part("1")]]]).latex([], stacked=True).splitlines()
    assert lines[5:9] == [
        r"t & \textbf{20} $\rightarrow$ $-$0.50 \\",
        r" & {\scriptsize [10, 30] $\rightarrow$ } \\[2pt]",
        r"u & 1 \\",
        r" &  \\[2pt]",
    ]
