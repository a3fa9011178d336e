"""tools.report: a page from a results.json that is there already."""
import json
import re

import pytest
import torch

from tests.evaluation.test_result_page import text_of
from tests.support.pages import require_safe, result_entry
from tools.report import main
from utils.checkpoint.read import file_digest
from utils.cli.console import run
from utils.metrics import ImageMetrics
from utils.metrics.image_scores import write_image_scores

NAMES = ["road", "car"]


def write_results(folder, *entries):
    """results.json with these runs, the first at its top, and the scores of their images."""
    metrics = ImageMetrics(2)
    target = torch.randint(0, 2, (9, 8, 8), generator=torch.Generator().manual_seed(0))
    metrics.update(target.flip(0), target)
    write_image_scores(folder / "images.csv", metrics.compute(), [f"i{k}" for k in range(9)], NAMES)
    runs = [{**one, "image_scores": "images.csv"} for one in entries]
    (folder / "results.json").write_text(json.dumps({**runs[0], "runs": runs}))
    return folder / "results.json"


def made(path, capsys, *options):
    assert run(main, [str(path), *map(str, options)]) == 0
    return capsys.readouterr().err


def test_the_newest_result_is_shown_with_the_other_rules_of_its_setting(tmp_path, capsys):
    path = write_results(tmp_path, result_entry(NAMES), result_entry(NAMES, "T", threshold=0.3),
                         result_entry(NAMES, "rankdice", flip=True))
    err = made(path, capsys)
    assert "1 of 3 results are not on it" in err
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    require_safe(page)
    words = text_of(page)
    assert "rules max, T measured with" in words and "9 images" in words
    assert "results.json holds none; --pictures adds them" in words
    assert len(json.loads(re.search(r'"strip-data">(.*?)<', page)[1])["ids"]) == 9


def test_a_page_with_pictures_is_not_replaced_in_silence(tmp_path, capsys):
    path = write_results(tmp_path, result_entry(NAMES))
    assert "had pictures" not in made(path, capsys) + made(path, capsys)
    (tmp_path / "report.html").write_text('<img src="data:image/png;base64,">')
    assert "the page that it replaces had pictures" in made(path, capsys)


def test_results_are_chosen_by_their_numbers(tmp_path, capsys):
    path = write_results(tmp_path, result_entry(NAMES), result_entry(NAMES, "rankdice", flip=True))
    made(path, capsys, "--run", 2, "-o", tmp_path / "page.html")
    words = text_of((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert "rules rankdice" in words
    assert run(main, [str(path), "--run", "3"]) == 3
    assert "has no result 3; it has 2" in capsys.readouterr().err


@pytest.mark.parametrize("content, said", [
    (b"", "is not a results file"), (b"[]", "is not a results file"), (b"{}", "procedure"),
    (b'{"procedure": "max", "runs": 3}', "is not a results file"),
    (b'{"a":' * 100_000, "is not a results file"),
    (b'{"procedure": "max", "x": ' + b'{"a":' * 900 + b"1" + b"}" * 901, "too deeply")])
def test_a_damaged_file_is_one_message(tmp_path, capsys, content, said):
    path = tmp_path / "results.json"
    path.write_bytes(content)
    assert run(main, [str(path)]) == 3
    err = capsys.readouterr().err
    assert said in err and err.count("error:") == 1 and "Traceback" not in err
    assert not (tmp_path / "report.html").exists()


def test_scores_of_images_that_are_gone_leave_the_rest_of_the_page(tmp_path, capsys):
    path = write_results(tmp_path, result_entry(NAMES))
    (tmp_path / "images.csv").write_text("id,nothing\n")
    assert "no scores of images" in made(path, capsys)
    words = text_of((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert "51.23" in words and "not a table of image scores" in words


def test_options_without_effect_are_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main([str(tmp_path / "results.json"), "-d", "cpu"])
    assert "--device has no effect without --pictures" in capsys.readouterr().err


def test_the_results_are_not_overwritten(tmp_path, capsys):
    path = write_results(tmp_path, result_entry(NAMES))
    before = path.read_bytes()
    assert run(main, [str(path), "-o", str(path)]) == 2
    assert "a page is a file NAME.html" in capsys.readouterr().err and path.read_bytes() == before


def test_a_result_refined_by_segfix_chooses_no_pictures(tmp_path, capsys):
    path = write_results(tmp_path, result_entry(NAMES))
    results = json.loads(path.read_text())
    checkpoint = tmp_path / "model.pth"
    torch.save({"format": 1, "model": {}, "config": {}}, checkpoint)
    named = {"checkpoint": {"path": str(checkpoint), "sha256": file_digest(checkpoint)}}
    runs = [{**results["runs"][0], **named, **more} for more in ({}, {"segfix": True})]
    path.write_text(json.dumps({**runs[0], "runs": runs}))
    assert run(main, [str(path), "--run", "2", "1", "--pictures", "-d", "cpu"]) == 3
    assert "refined by SegFix, and does not say with which file" in capsys.readouterr().err
