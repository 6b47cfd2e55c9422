"""Tables are what their rows say, in Markdown and in LaTeX."""

from cs336.profiling.tables import OUT_OF_MEMORY, latex_table, markdown_table, span

ROWS = [
    {"size": "small", "milliseconds": 12.3456, "tokens": 1_048_576, "compiled": True},
    {"size": "10b_x", "milliseconds": OUT_OF_MEMORY, "compiled": False},
]
COLUMNS = {"size": "size", "milliseconds": "ms (100 %)", "tokens": "tokens", "compiled": "compiled"}


def test_a_span_of_what_reads_alike_is_one_number():
    assert span([2.11, 2.14], ".1f") == "2.1" and span([2.16, 2.11], ".1f") == "2.1 to 2.2"


def test_markdown_by_hand():
    assert markdown_table(ROWS, COLUMNS) == (
        "| size  |    ms (100 %) |    tokens | compiled |\n"
        "| ----- | ------------: | --------: | -------: |\n"
        "| small |          12.3 | 1,048,576 |      yes |\n"
        "| 10b_x | out of memory |           |       no |"
    )


def test_latex_by_hand():
    assert latex_table(ROWS, COLUMNS, caption="5 % of all").splitlines() == [
        r"\begin{table}",
        r"\centering",
        r"\caption{5 \% of all}",
        r"\begin{tabular}{lrrr}",
        r"\toprule",
        r"size & ms (100 \%) & tokens & compiled \\",
        r"\midrule",
        r"small & 12.3 & 1,048,576 & yes \\",
        r"10b\_x & out of memory &  & no \\",
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]


def test_a_cell_cannot_break_the_table():
    assert markdown_table([{"a": "x|y\nz"}], {"a": "a"}).splitlines()[-1] == "| x/y z |"
