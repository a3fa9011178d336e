"""The recipes: their list, their section "published", and the nearest one to a mistyped path."""
import pytest

from tests.config.samples import small
from utils.config import recipes
from utils.config.docs import json_schema, list_text
from utils.config.load import load_config, load_stages
from utils.config.recipes import (
    NOT_RECIPES,
    recipe_files,
    result_text,
)
from utils.config.schema import resolve_config
from utils.errors import ConfigError, short_path

SECTION = {"source": "A paper", "gpus": 2, "results": [
    {"mIoU": 81.13, "runs": [81.0, 81.26]}, {"name": "3s", "mIoU": 82, "test": "--flip"}]}


def test_the_recipes_are_the_configs_but_not_their_bases_and_not_the_studies(tmp_path):
    for name in ("a.json", "voc/b.json", *(f"{one}/c.json" for one in NOT_RECIPES), "voc/d.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    assert [path.name for path in recipe_files(tmp_path)] == ["a.json", "b.json"]


def test_no_two_recipes_have_one_name_and_each_file_has_the_name_of_its_runs():
    stems = [path.stem for path in recipe_files()]
    assert len(set(stems)) == len(stems)
    assert [load_stages(path)[-1]["name"] for path in recipe_files()] == stems


def test_a_published_section_is_read_with_its_defaults(write):
    published = load_stages(write("a.json", {"published": SECTION})).published
    assert published and published.source == "A paper" and published.checkpoint is None
    assert published.score == "81.13 / 82 mIoU"
    assert result_text(published.results[0]) == "81.13 (81.00, 81.26)"
    assert load_stages(write("b.json", {"name": "b"})).published is None


def test_numbers_keep_the_digits_that_were_printed():
    def text(**given):
        return result_text({"mDice": None, "mIoU": None, "AP": None, "runs": None, "best": False,
                            "note": "", **given})
    assert text(mDice=64.01, mIoU=57.0) == "64.01, 57.0"
    assert text(mIoU=80.4, runs=[80.4, 80.4]) == "80.40 (80.40, 80.40)"
    assert text(mIoU=83.54, best=True, note="a bar") == "best 83.54 (a bar)"
    assert text(note="unstable") == "- (unstable)"


def test_all_mistakes_of_a_published_section_are_reported_with_their_lines(write):
    path = write("a.json", '{"published": {"source": 3, "lodaer": "x",\n'
                           '"results": [{"mIuO": 1},\n{"runs": ["a"]}]}}')
    with pytest.raises(ConfigError) as caught:
        _ = load_stages(path).published
    text = str(caught.value)
    assert "4 mistakes" in text and "Did you mean 'loader'" in text and "a.json:1" in text
    assert "published.results[0].mIuO" in text and "published.results[1].runs" in text
    assert "a.json:3" in text


def test_scores_are_not_inherited_and_not_part_of_a_config(write):
    write("a.json", small(published=SECTION))
    child = write("b.json", {"extends": "a.json", "name": "mine"})
    assert load_stages(child).published is None
    assert "published" not in load_config(write("c.json", small(published=SECTION)))
    assert "published" not in resolve_config(load_config(child))


def test_editors_know_the_section():
    schema = json_schema()["properties"]["published"]
    assert {"source", "results", "checkpoint", "loader", "gpus"} == set(schema["properties"])


def test_the_list_shows_score_data_and_network_of_the_recipes_with_a_word():
    lines = list_text("recipes").splitlines()
    assert len(lines) == len(list(recipe_files()))
    line, = (line for line in lines if "mic_ms_wrmi.json" in line)
    assert line.split() == ["configs/cityscapes/mic_ms_wrmi.json", "82.35", "/", "82.70", "mIoU",
                            "CityScapes", "MscaleOCR", "hrnet_w48"]
    paddle, = (line for line in lines if "paddle_mscale" in line)
    assert "CityScapes + Cityscapes_autolabelled" in paddle
    assert {line.split("/")[1] for line in list_text("recipes", "Kvasir").splitlines()} == {
        "kvasir"}
    assert "SegFix hrnet_w48" in list_text("recipes", "SEGFIX")
    assert "PIDNet m" in list_text("recipes", "pidnet")


def test_one_recipe_is_listed_with_its_source_runs_and_checkpoint():
    text = list_text("recipes", "openseg_baseoc_r101")
    assert "source      openseg" in text and "published   79.49" in text
    assert "base_ocnet_deepbase_resnet101_dilated8_1_latest.pth" in text
    assert "82.88" in list_text("recipes", "mic_ms_wrmi")


def test_a_recipe_in_stages_is_listed_with_the_data_and_the_names_of_all(write):
    text = list_text("recipes", "mic_ocr_coarse_2")
    assert "CityScapes -> Cityscapes_coarse -> CityScapes" in text
    assert "  stages      mic_ocr_wce, mic_ocr_coarse_2, mic_ocr_coarse" in text


def test_a_word_of_no_recipe_suggests_the_nearest():
    with pytest.raises(ConfigError, match="Did you mean 'mic_hrnet_wrmi'"):
        list_text("recipes", "mic_hrnet_wrmii")


@pytest.mark.parametrize("path", ["configs/cityscapes/mic_hrnet_wrmii.json", "mic_hrnet_wrmi",
                                  "configs/MIC_hrnet_wrmi.json"])
def test_a_wrong_path_of_a_config_suggests_the_nearest_recipe(path):
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert caught.value.where == path
    assert str(short_path(recipes.FOLDER / "cityscapes/mic_hrnet_wrmi.json")) in \
        str(caught.value.fix)


def test_a_wrong_path_that_resembles_no_recipe_is_told_how_to_list_them():
    with pytest.raises(ConfigError, match="--list recipes") as caught:
        load_config("qqqqqqqq.json")
    assert "did you mean" not in str(caught.value)
