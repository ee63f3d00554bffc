"""Does the page show all fifteen models on all three tasks, and only where they were run?"""

import re

import planted
import planted_order
from planted_order import ORDERS, TASKS

from elastic_jax import report
from elastic_jax.analysis import table
from elastic_jax.report import figures
from elastic_jax.report.findings import Findings


def test_the_page_has_a_row_for_every_order_and_what_the_order_does(tmp_path):
    page = report.render(planted_order.write(tmp_path / "measures.parquet"), tmp_path / "report").read_text()
    part = page[page.index('<section id="order">') :].partition("</section>")[0]
    assert '<a href="#order">' in page and 'id="figure-task_orders"' in part
    table = part[part.index("<h3>Every model</h3>") :]
    for sequence in ORDERS:
        (row,) = re.findall(rf'<th class="l nb">{" → ".join(sequence)}</th>(.*?)</tr>', table)
        cells = re.findall(r'<td class="c">(.*?)</td>', row)
        assert len(cells) == 2 * len(TASKS) + 2
        assert [cell.startswith("<b>") for cell in cells] == [task == sequence[-1] for task in TASKS] + [False] * 5
    text = re.sub(r"<[^>]+>", " ", part)
    assert re.search(r"last − earlier: \S.*? rate\s+0\.26\d \[0\.2\d\d, 0\.2\d\d\]\s+bits/token", text)
    assert "each trained for 128 examples" in text
    for name in ("order", "order_effects", "order_per_seed", "order_cells"):
        assert (tmp_path / "report" / "tables" / f"{name}.csv").exists()
    lines = (tmp_path / "report" / "figures" / "task_orders.csv").read_text().splitlines()
    assert len(lines) == 1 + 15 * 3


def test_tasks_have_colours_of_their_own_in_the_figure_of_pretraining(tmp_path):
    rows, metadata = planted.table(planted.Plant(volumes=(256,)))
    base = rows[(rows.stage == "pretrain") & (rows.measure == "bits_per_token") & (rows.split == "pretrain")]
    tasks = [base.assign(split=f"task-{name}", value=base.value + i) for i, name in enumerate(TASKS, 1)]
    path = planted.write(tmp_path / "measures.parquet", table.stack([rows, *tasks]), metadata)
    figure = figures.pretraining(Findings(table.select(table.load(path)))).figure
    (legend,) = figure.legends
    looks = {text.get_text(): line for text, line in zip(legend.get_texts(), legend.get_lines(), strict=True)}
    assert {f"task {name}" for name in TASKS} <= set(looks)
    colours = [line.get_color() for line in looks.values()]
    assert len(set(colours)) == len(colours)
    drawn = {line.get_color(): line for line in figure.axes[0].lines}
    gap = drawn[looks["task kind"].get_color()].get_ydata() - drawn[looks["pretrain rows"].get_color()].get_ydata()
    assert abs(gap - 3).max() < 1e-9


def test_variants_are_told_apart(tmp_path):
    path = planted_order.write(tmp_path / "measures.parquet", names=("planted.one", "planted.two"))
    page = report.render(path, tmp_path / "report").read_text()
    part = page[page.index("<h3>Every model</h3>") :].partition("</table>")[0]
    assert part.count('<td class="l">one</td>') == part.count('<td class="l">two</td>') == 16


def test_the_summary_says_what_the_order_does(tmp_path):
    text = report.summary(planted_order.write(tmp_path / "measures.parquet"))
    assert re.search(r"Order: last − earlier: .*, 0\.26\d \[0\.2\d\d, 0\.2\d\d\] bits/token \(above\)", text)


def test_a_study_without_tasks_does_not_show_them(rendered):
    page = rendered.read_text()
    assert 'id="order"' not in page and "#order" not in page
    assert not (rendered.parent / "tables" / "order.csv").exists()
