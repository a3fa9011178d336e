"""tools.compare_results: reads two files and prints one verdict."""
import json

import pytest
import torch

from tools.compare_results import main
from utils.cli.console import run
from utils.metrics import ImageMetrics
from utils.metrics.image_scores import write_image_scores

NAMES = ["road", "car, parked"]


def write(path, error, images=25, first=0, published=False):
    """Image scores of predictions that are wrong in `error` of the pixels."""
    g = torch.Generator().manual_seed(1)
    metrics = ImageMetrics(2, published=published)
    target = torch.randint(0, 2, (images, 16, 16), generator=g)
    wrong = torch.rand(target.shape, generator=g) < error
    metrics.update(torch.where(wrong, 1 - target, target), target)
    ids = [f"img {first + i}" for i in range(images)]
    write_image_scores(path, metrics.compute(), ids, NAMES)
    return str(path)


def write_json(folder, rules, **extra):
    """results.json with a run for each rule, the newest first at its top."""
    runs = [{"procedure": rule, "image_scores": f"{rule}.csv", **extra} for rule in rules]
    for rule, error in zip(rules, (0.1, 0.3), strict=False):      # one rule or two
        write(folder / f"{rule}.csv", error)
    (folder / "results.json").write_text(json.dumps({**runs[0], "runs": runs}))
    return str(folder / "results.json")


def compared(capsys, *argv):
    assert main([*argv, "--json", "--draws", "200"]) in (None, 0)
    return json.loads(capsys.readouterr().out)


def test_a_worse_result_differs_from_a_better_one(tmp_path, capsys):
    a, b = write(tmp_path / "a.csv", 0.1), write(tmp_path / "b.csv", 0.3)
    table = compared(capsys, a, b)
    assert table["images"] == 25
    scores = table["metrics"]["Mean_IoU"]
    assert scores["high"] < 0
    assert scores["difference"] == pytest.approx(scores["second"] - scores["first"])
    main([a, b, "--draws", "200"])
    assert "differ" in capsys.readouterr().out


def test_a_result_does_not_differ_from_itself(tmp_path, capsys):
    a = write(tmp_path / "a.csv", 0.1)
    main([a, a, "--draws", "200"])
    lines = capsys.readouterr().out.splitlines()[5:]
    assert lines
    assert all(line.endswith("no clear difference") for line in lines)


def test_rules_of_one_results_file_are_compared(tmp_path, capsys):
    path = write_json(tmp_path, ["max", "rankdice"])
    table = compared(capsys, path, path, "--rule", "max", "rankdice")
    assert table["metrics"]["mDice_I"]["difference"] < 0


def test_classes_of_interest_of_the_run_are_kept(tmp_path, capsys):
    path = write_json(tmp_path, ["max", "rankdice"], classes_of_interest=[1])
    a = compared(capsys, path, path)["metrics"]["Mean_IoU"]["first"]
    b = compared(capsys, *[str(tmp_path / "max.csv")] * 2)["metrics"]["Mean_IoU"]["first"]
    assert a != b


def test_results_without_equal_counts_share_image_level_scores_and_a_notice_says_why(tmp_path,
                                                                                     capsys):
    usual = write_json(tmp_path, ["max", "rankdice"])
    (tmp_path / "other").mkdir()
    other = write_json(tmp_path / "other", ["max", "rankdice"], classes_of_interest=[1])
    published = write(tmp_path / "published.csv", 0.1, published=True)
    for path, reason in ((other, "averages classes [0, 1], the other [1]"),
                         (published, "count no pixels")):
        main([usual, path, "--json", "--draws", "200"])
        captured = capsys.readouterr()
        assert set(json.loads(captured.out)["metrics"]) == {"mIoU_I", "mDice_I", "Pixel_Accuracy",
                                                            "Binary_Accuracy"}
        assert reason in captured.err


def test_only_common_images_are_compared_and_a_warning_says_so(tmp_path, capsys):
    a, b = write(tmp_path / "a.csv", 0.1), write(tmp_path / "b.csv", 0.1, first=10)
    main([a, b, "--json", "--draws", "200"])
    captured = capsys.readouterr()
    assert json.loads(captured.out)["images"] == 15
    assert "15 images" in captured.err


def test_published_scores_are_compared_without_counts(tmp_path, capsys):
    a = write(tmp_path / "a.csv", 0.1, published=True)
    table = compared(capsys, a, a)["metrics"]
    assert "mIoU_I" in table
    assert "Mean_IoU" not in table


@pytest.mark.parametrize("break_it, message", [
    (lambda folder: (folder / "b.csv").unlink(), "cannot read"),
    (lambda folder: (folder / "b.csv").write_text("id,nothing\n"), "not a table of image scores"),
    (lambda folder: (folder / "b.csv").write_text(""), "not a table of image scores"),
    (lambda folder: write(folder / "b.csv", 0.1, first=100), "no image is in both")])
def test_files_that_cannot_be_compared_give_one_message(tmp_path, capsys, break_it, message):
    a, b = write(tmp_path / "a.csv", 0.1), write(tmp_path / "b.csv", 0.1)
    break_it(tmp_path)
    assert run(main, [a, b]) == 3
    assert message in capsys.readouterr().err


def test_few_images_cannot_tell_and_a_warning_says_so(tmp_path, capsys):
    a, b = (write(tmp_path / name, error, images=5) for name, error in (("a.csv", 0.1),
                                                                        ("b.csv", 0.9)))
    main([a, b])
    out, err = capsys.readouterr()
    assert "5 images are too few" in err and "at least 6 are needed" in err
    lines = out.splitlines()[5:]
    assert lines and all(line.endswith("too few images to tell") for line in lines)
    scores = compared(capsys, a, b)["metrics"]["mIoU_I"]
    assert scores["low"] is None and not scores["differs"] and scores["p"] == 2 / 2 ** 5


def test_a_result_without_images_is_an_error(tmp_path, capsys):
    a, b = write(tmp_path / "a.csv", 0.1), write(tmp_path / "b.csv", 0.1, images=0)
    assert run(main, [a, b]) == 3
    assert "no scored image" in capsys.readouterr().err


def test_what_two_results_do_not_share_is_said(tmp_path, capsys):
    path = write_json(tmp_path, ["max", "rankdice"])
    document = json.loads((tmp_path / "results.json").read_text())
    document["runs"][1]["scales"] = [0.5, 1.0]
    (tmp_path / "results.json").write_text(json.dumps(document))
    main([path, path, "--run", "1", "2"])
    assert "they differ in procedure: max / rankdice; scales: null / [0.5, 1.0]\n" \
        in capsys.readouterr().out


def test_a_result_of_several_is_chosen_by_its_number(tmp_path, capsys):
    path = write_json(tmp_path, ["max", "max"], Mean_IoU=0.5)
    main([path, "--list"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == path and [line.split()[0] for line in lines[1:]] == ["1", "2"]
    main([path, path, "--rule", "max"])
    assert "holds 2 results of rule max; the newest is taken" in capsys.readouterr().err
    assert run(main, [path, path, "--run", "3"]) == 3
    assert "has no result 3; it has 2" in capsys.readouterr().err


@pytest.mark.parametrize("argv", [["a.json"], ["a", "b", "--rule", "max", "--run", "1"],
                                  ["a", "b", "--run", "1", "2", "3"]])
def test_choices_that_make_no_sense_are_refused(argv):
    with pytest.raises(SystemExit):
        main(argv)


def test_a_rule_that_was_not_measured_is_named(tmp_path, capsys):
    path = write_json(tmp_path, ["max", "rankdice"])
    assert run(main, [path, path, "--rule", "T"]) == 3
    assert "it has max, rankdice" in capsys.readouterr().err
