"""utils/study/summary.py and tables.py: the table, its differences, and what is missing."""
import csv
import io
import re

import pytest

from tests.support.made_up_study import image_scores, run, summary_of
from utils.study import tables
from utils.study.study_file import Cell, Published

NAMES = [r"a_b & 50% #1 {x} ~^ \back $5 | *star* <b>", "_lead", "a\nb", "-0.5", r"\textbf{z}",
         "±<1", "[2pt] x", "*"]


def lines_of(text, start="|"):
    return [line for line in text.splitlines() if line.startswith(start)]


def test_a_row_has_mean_sd_every_run_the_printed_number_and_the_difference_to_it():
    cell = Cell("net", seeds=(0, 1), published={"Mean_IoU": Published(51.0, (50.5, 51.5))})
    summary = summary_of(run(cell, 0.50), run(cell, 0.53, 1))
    assert "| net | 51.50 ± 2.12 | 50.00, 53.00 | 51.00 (50.50, 51.50) | +0.50 |" in \
        tables.markdown(summary)


def test_one_seed_has_neither_sd_nor_interval_and_needs_no_number_of_seeds():
    summary = summary_of(run(Cell("a"), 0.5), run(Cell("b"), 0.6), baseline="a")
    text = tables.markdown(summary)
    assert "| b | **60.00** |" in text and "| b | +10.00 | 1 | - | - | - | - | - |" in text
    assert summary["seeds_needed"] is None
    assert "No interval over images of b: a 0 has no scores of single images." in text


def test_the_best_values_of_each_data_set_are_marked_as_they_are_printed():
    cells = [Cell(label, data) for data in ("x", "y") for label in ("a", "b")]
    scores = (0.50001, 0.50002, 0.7, 0.2)       # the first two print the same
    rows = summary_of(*map(run, cells, scores))["rows"]
    assert [row["scores"]["Mean_IoU"]["best"] for row in rows] == [True, True, True, False]


def test_of_a_loss_the_smallest_is_the_best():
    rows = summary_of(run(Cell("a"), 0.5, loss=0.3), run(Cell("b"), 0.6, loss=0.4),
                      scores=("Mean_IoU", "loss"))["rows"]
    assert [row["scores"]["loss"]["best"] for row in rows] == [True, False]


@pytest.mark.parametrize("name", NAMES)
def test_names_of_any_characters_leave_the_tables_whole(name):
    summary = summary_of(*(run(cell, 0.5 + seed / 10, seed) for cell in (Cell(name), Cell("b"))
                           for seed in (0, 1)), baseline=name, failed=[(name, "failed\nbadly")])
    columns = {len(re.findall(r"(?<!\\)\|", line)) for line in lines_of(tables.markdown(summary))}
    assert len(columns) <= 2        # of the main table and of the differences
    text = tables.latex(summary)
    assert text.count("{") - text.count(r"\{") == text.count("}") - text.count(r"\}")
    for line in text.splitlines()[1:]:
        line = line.removeprefix("% ")      # a caption can be copied out of its comment
        assert not re.search(r"(?<!\\)[%#_]|[<>|](?!\$)", re.sub(r"\\begin.*", "", line)), line
        assert line.count("$") % 2 == line.count(r"\$") % 2
    rows = list(csv.DictReader(io.StringIO(tables.csv_text(summary))))
    assert [row["row"] for row in rows] == [name, "b"]
    assert not any(line.startswith(("[", "*")) for line in text.splitlines())


def test_latex_has_captions_that_say_what_the_intervals_are():
    cells = [Cell(name, seeds=(0, 1)) for name in "abc"]
    runs = [run(cell, 0.5 + 0.1 * k + 0.01 * seed, seed, image_scores(0.01 * k, seed=seed))
            for k, cell in enumerate(cells) for seed in (0, 1)]
    text = " ".join(tables.latex(summary_of(*runs, baseline="a")).replace("\n% ", " ").split())
    for said in ("Mean IoU in percent. Means over runs of different seeds $\\pm$ standard "
                 "deviation. Bold: the best mean. \\begin{tabular}",
                 "Differences to a in points, with 95 \\% confidence intervals. Over seeds: t "
                 "interval and t test of the differences of runs of the same seed; they say what "
                 "another training", "Over images: jackknife interval and randomization test",
                 "p is adjusted for the 2 rows (Holm). \\begin{tabular}"):
        assert said in text, said
    theirs = Cell("d")
    text = tables.latex(summary_of(*runs[:2], run(theirs, 0.5, None), run(theirs, 0.6, None),
                                   baseline="a"))
    assert "runs without common seeds (Welch)" in " ".join(text.replace("\n% ", " ").split())
    assert "Over images:" not in text and "adjusted" not in text
    assert "% No interval over images of d: d None has no scores of single images." in text


def test_latex_has_minus_signs_and_bold_cells_of_the_best_rows_only():
    summary = summary_of(run(Cell(r"\textbf{z}"), 0.4), run(Cell("b"), 0.5), baseline="b")
    text = tables.latex(summary)
    assert r"\textbackslash{}textbf\{z\} & 40.00" in text and r"b & \textbf{50.00}" in text
    assert "$-$10.00" in text


def test_a_baseline_without_a_result_leaves_no_differences_and_says_so():
    base = Cell("base", config=None)
    text = tables.markdown(summary_of(run(Cell("a"), 0.5), missing=(base,), baseline="base"))
    assert "No difference of a: base has no result." in text and "95 %" not in text


def test_missing_and_failed_runs_are_named(tmp_path):
    cell, other = (Cell(name, config=tmp_path, seeds=(0, 1)) for name in "ab")
    summary = summary_of(run(cell, 0.5), missing=(other,),
                         failed=[("b_s0", "no memory\nat step 3")])
    text = tables.markdown(summary)
    assert "Without a result: a (seed 1); b (seed 0, 1)." in text
    assert "- failed: b_s0: no memory" in text and "| b | - | - |" not in text.split("\n\n")[0]


def test_a_single_run_of_another_program_is_compared_with_all_runs_of_a_row():
    ours = Cell("ours", seeds=(0, 1, 2))
    runs = [run(ours, 0.5, seed, image_scores(seed=seed)) for seed in range(3)]
    theirs = run(Cell("theirs"), 0.55, None, image_scores(0.05, seed=9))
    one, = summary_of(*runs, theirs, baseline="ours")["comparisons"]
    assert one["images"]["runs"] == 3 and one["images"]["images"] == 70
    assert one["images"]["low"] > 0 and one["images"]["p_holm"] < 0.01
    assert not one["seeds"]["paired"]


def test_runs_are_paired_by_seed_and_p_are_adjusted_for_the_number_of_rows():
    cells = [Cell(name, seeds=(0, 1)) for name in ("base", "x", "y")]
    runs = [run(cell, 0.5 + 0.1 * k + 0.01 * seed, seed, image_scores(0.01 * k, seed=seed + 2 * k))
            for k, cell in enumerate(cells) for seed in (0, 1)]
    first, second = summary_of(*runs, baseline="base")["comparisons"]
    assert first["seeds"]["paired"] and first["images"]["runs"] == 2
    assert first["images"]["p_holm"] >= first["images"]["p"]
    assert max(first["images"]["p_holm"] / first["images"]["p"],
               second["images"]["p_holm"] / second["images"]["p"]) == pytest.approx(2)


@pytest.mark.parametrize("other,reason", [
    (image_scores(first=200), "no image is in both results"),
    (image_scores(classes=4), "3 classes against 4"), (image_scores(count=3), "too few to tell")])
def test_an_interval_over_images_that_is_missing_has_its_reason(other, reason):
    summary = summary_of(run(Cell("a"), 0.5, images=image_scores()),
                         run(Cell("b"), 0.6, images=other), baseline="a")
    assert reason in tables.markdown(summary)


def test_pixel_accuracy_has_no_interval_over_images():
    # The accuracy of the table counts all pixels; that of single images is their mean.
    accurate = image_scores()
    accurate.image[:, 2] = 0.9
    summary = summary_of(*(run(Cell(name), 0.5, images=accurate, Pixel_Accuracy=0.9)
                           for name in "ab"), baseline="a", scores=("Pixel_Accuracy",))
    assert summary["comparisons"][0]["images"] is None
    assert "only Mean_IoU, Mean_Dice, mIoU_I, mDice_I have one" in tables.markdown(summary)


def test_rows_on_several_data_sets_are_ranked_and_compared_with_the_baseline_of_their_data():
    runs = [run(Cell(label, data), score, 0, image_scores(score - 0.5))
            for data, shift in (("x", 0.0), ("y", 0.1), ("z", 0.05))
            for label, score in (("a", 0.5 + shift), ("b", 0.55 + shift))]
    summary = summary_of(*runs, baseline="a")
    assert summary["ranks"]["mean"] == [2.0, 1.0]
    assert [one["baseline"] for one in summary["comparisons"]] == ["a on x", "a on y", "a on z"]
    assert "Ranks by mean IoU" in tables.markdown(summary)


def test_more_seeds_are_asked_for_where_the_margin_needs_them():
    a, b = (Cell(name, seeds=(0, 1, 2)) for name in "ab")
    runs = [one for seed, more in enumerate((0.001, 0.004, 0.007))
            for one in (run(a, 0.5, seed), run(b, 0.5 + more, seed))]
    summary = summary_of(*runs, baseline="a")
    needed = summary["seeds_needed"]
    assert needed["sd"] == pytest.approx(0.003) and needed["needed"] == 10 and needed["more"] == 7
    assert "takes 10 seeds per row: 7 more than now" in tables.markdown(summary)
