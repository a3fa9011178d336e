"""Reading, merging, overriding and saving configs."""
import json
import os
import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.config.samples import JSON, mistakes, only_mistake, places_in, small
from tests.support.run_program import program
from utils.config.load import apply_overrides, load_config, save_config
from utils.config.schema import resolve_config
from utils.errors import ConfigError


def test_parents_merge_in_order_and_the_child_wins(write):
    write("base/a.json", {"name": "a", "seed": 1, "trainer": {"epochs": 1, "val": False}})
    write("base/b.json", {"seed": 2, "trainer": {"epochs": 2}})
    child = write("c.json", {"extends": ["base/a.json", "base/b.json"],
                             "$schema": "config.schema.json", "trainer": {"epochs": 3}})
    assert load_config(child) == {"name": "a", "seed": 2, "trainer": {"epochs": 3, "val": False}}


def test_a_parent_is_found_relative_to_the_file_that_names_it(write):
    write("base/root.json", {"seed": 5})
    write("base/a.json", {"extends": "root.json"})
    assert load_config(write("c.json", {"extends": "base/a.json"})) == {"seed": 5}


def test_a_name_that_replaces_the_section_of_a_parent_says_once_what_it_drops(write, capsys):
    write("base.json", {"loss": {"type": "FocalLoss", "args": {"gamma": 3}}, "optimizer": "SGD"})
    path = write("child.json", {"extends": "base.json", "loss": "FocalLoss", "optimizer": "Adam"})
    for _ in range(2):
        assert load_config(path)["loss"] == "FocalLoss"
    text = " ".join(capsys.readouterr().err.split())
    assert text.count("replaces the whole section; left out: args") == 1
    assert '"loss": "FocalLoss" (' in text and "child.json:" in text
    assert '("loss": {"type": "FocalLoss"} keeps' in text


def test_a_new_type_drops_the_arguments_of_the_parent_and_nothing_else(write):
    write("a.json", {"optimizer": {"type": "SGD", "differential_lr": True,
                                   "args": {"momentum": 0.9}},
                     "arch": {"type": "PSPNet", "args": {"bins": [1], "backbone": "resnet18"}}})
    child = write("c.json", {"extends": "a.json",
                             "optimizer": {"type": "Adam", "args": {"lr": 1}},
                             "arch": {"type": "PSPNet", "args": {"bins": [2]}}})
    assert load_config(child) == {
        "optimizer": {"type": "Adam", "differential_lr": True, "args": {"lr": 1}},
        "arch": {"type": "PSPNet", "args": {"bins": [2], "backbone": "resnet18"}}}


@pytest.mark.parametrize("old, new", [
    ({"type": "CE", "args": {}}, {"out": "CE", "aux": "CE"}),
    ({"out": "CE", "aux": "CE"}, {"type": "CE"}),
    ("CE", {"out": "CE"}), ({"out": "CE"}, "CE"), ({"type": "CE"}, ["CE", "CE"]),
])
def test_a_loss_of_another_form_replaces_the_parents(write, old, new):
    write("a.json", {"loss": old})
    assert load_config(write("c.json", {"extends": "a.json", "loss": new})) == {"loss": new}


def test_losses_of_the_same_form_merge(write):
    write("a.json", {"loss": {"out": {"type": "CE"}, "aux": {"type": "CE", "weight": 0.4}}})
    child = write("c.json", {"extends": "a.json", "loss": {"aux": {"weight": 1}}})
    assert load_config(child)["loss"] == {"out": {"type": "CE"},
                                          "aux": {"type": "CE", "weight": 1}}


def test_a_circle_of_parents_is_shown_as_a_chain(write):
    write("a.json", {"extends": "b.json"})
    write("b.json", {"extends": "c.json"})
    path = write("c.json", {"extends": "a.json"})
    with pytest.raises(ConfigError, match=r"c\.json -> .*a\.json -> .*b\.json -> .*c\.json"):
        load_config(path)


def test_a_missing_parent_is_named_with_the_chain_that_led_to_it(write):
    write("a.json", {"extends": "none.json"})
    path = write("c.json", {"extends": "a.json"})
    with pytest.raises(ConfigError, match=r"none\.json does not exist") as caught:
        load_config(path)
    assert re.search(r"c\.json -> .*a\.json -> .*none\.json", str(caught.value))


def test_a_name_that_a_child_file_extends_keeps_its_place(write):
    write("a.json", {"loss": "CE"})
    loaded = load_config(write("c.json", {"extends": "a.json", "loss": {"args": {}}}))
    assert loaded == {"loss": {"type": "CE", "args": {}}}
    assert loaded.places["loss", "type"].endswith("a.json:1")


def test_a_section_replaced_by_another_kind_of_value_is_reported_where_it_is_written(write):
    write("a.json", small(loss=["CE", "CE"], loss_weights=[1, 0.4]))
    path = write("c.json", '{"extends": "a.json",\n"loss_weights": {"out": 1}, "trainer": []}')
    weights, trainer = mistakes(load_config(path))
    assert re.match(r"loss_weights: expected list of float or null, .*c\.json:2", weights)
    assert re.match(r"trainer: expected an object .*c\.json:2", trainer)


@given(st.data())
@settings(max_examples=60, deadline=None,
          suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_parents_merge_and_every_key_has_its_place(tmp_path, data):
    section = st.dictionaries(st.sampled_from(["type", "args", "x"]), JSON, max_size=3)
    config = st.dictionaries(st.sampled_from(["loss", "arch", "a"]), JSON | section, max_size=3)
    for name, extends in [("a", []), ("b", []), ("c", ["a.json", "b.json"])]:
        text = json.dumps({**data.draw(config), "extends": extends}).replace("NaN", "0")
        (tmp_path / f"{name}.json").write_text(text.replace("Infinity", "1"))
    try:
        loaded = load_config(tmp_path / "c.json")
    except ConfigError as error:
        assert "is not set" in str(error)
        return
    assert set(loaded.places) == {place for place in places_in(loaded) if place}


@pytest.mark.parametrize("parents", [1, [1], {"a": 1}, None])
def test_extends_accepts_only_paths(write, parents):
    with pytest.raises(ConfigError, match=r"path or a list of paths(.|\n)*c\.json:1"):
        load_config(write("c.json", {"extends": parents}))


@pytest.mark.parametrize("text", ["[]", "1", '"x"', "null"])
def test_a_config_is_an_object(write, text):
    with pytest.raises(ConfigError, match="object"):
        load_config(write("c.json", text))


def test_variables_and_the_home_folder_expand_in_strings(write, monkeypatch):
    monkeypatch.setenv("DATA", "/data")
    monkeypatch.setenv("HOME", "/home/me")
    path = write("c.json", {"a": "${DATA}/x${DATA}", "b": ["~/y", "a~", "$DATA"], "n": 1})
    assert load_config(path, ["c=${DATA}", "b+=~/z"]) == {
        "a": "/data/x/data", "b": ["/home/me/y", "a~", "$DATA", "/home/me/z"], "n": 1,
        "c": "/data"}


def test_unset_variables_are_named_with_their_keys_and_lines(write, monkeypatch):
    monkeypatch.delenv("NO_SUCH", raising=False)
    path = write("c.json", '{"a": {\n"b": "${NO_SUCH}/x"},\n"c": ["${NO_SUCH}"]}')
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    first, second = str(caught.value).splitlines()
    assert re.match(r"a\.b \(.*c\.json:2\): .*'NO_SUCH' is not set", first)
    assert re.match(r"c\[0\] \(.*c\.json:3\): ", second)
    assert load_config(path, ["a.b=x", "c=[]"]) == {"a": {"b": "x"}, "c": []}


def test_a_syntax_error_is_reported_before_torch_is_imported(write):
    path = write("c.json", '{"a": 1,\n "b" 2}')
    code = ("import sys\nfrom utils.config.load import load_config\n"
            f"try: load_config({str(path)!r})\n"
            "except ValueError as error: print(error)\n"
            "print('torch' in sys.modules)")
    out = program("-c", code, check=True).stdout
    assert "c.json:2:6" in out and out.endswith("False\n")


@pytest.mark.parametrize("override, expected", [
    ("a.b=5", {"b": 5, "l": [1, {"c": 2}]}),
    ("a.b=1e-3", {"b": 1e-3, "l": [1, {"c": 2}]}),
    ("a.b=true", {"b": True, "l": [1, {"c": 2}]}),
    ("a.b=null", {"b": None, "l": [1, {"c": 2}]}),
    ("a.b=max Mean_IoU", {"b": "max Mean_IoU", "l": [1, {"c": 2}]}),
    ("a.b=", {"b": "", "l": [1, {"c": 2}]}),
    ("a.b=x=y", {"b": "x=y", "l": [1, {"c": 2}]}),
    ("a.b=//nas/data", {"b": "//nas/data", "l": [1, {"c": 2}]}),
    ('a.b="5"', {"b": "5", "l": [1, {"c": 2}]}),
    ("a.b=[1, 2]", {"b": [1, 2], "l": [1, {"c": 2}]}),
    ("a.b.c=1", None),
    ("a.n.m=1", {"b": 0, "l": [1, {"c": 2}], "n": {"m": 1}}),
    ("a.l[0]=7", {"b": 0, "l": [7, {"c": 2}]}),
    ("a.l.0=7", {"b": 0, "l": [7, {"c": 2}]}),
    ("a.l[1].c=7", {"b": 0, "l": [1, {"c": 7}]}),
    ("a.l+=3", {"b": 0, "l": [1, {"c": 2}, 3]}),
    ("a.l+=[3]", {"b": 0, "l": [1, {"c": 2}, [3]]}),
    ("a.n+=x", {"b": 0, "l": [1, {"c": 2}], "n": ["x"]}),
    ("a.l[2]=7", None), ("a.l[-1]=7", None), ("a.l.x=7", None), ("a.b+=1", None),
    ("a.b", None), ("=1", None), ("a..b=1", None), (".=1", None), ("a.b={1}", None),
    ("a.b=[1", None), ('a.b="x', None), ("a.b=${NO_SUCH}", None),
])
def test_overrides(override, expected):
    config = {"a": {"b": 0, "l": [1, {"c": 2}]}}
    if expected is None:
        with pytest.raises(ConfigError) as caught:
            apply_overrides(config, [override])
        assert "command line" in str(caught.value)
    else:
        assert apply_overrides(config, [override]) == {"a": expected}
    assert config == {"a": {"b": 0, "l": [1, {"c": 2}]}}


def test_a_new_type_on_the_command_line_drops_the_arguments_of_the_file_only():
    config = {"arch": {"type": "PSPNet", "args": {"bins": [1]}}}
    overrides = ["arch.args.backbone=resnet18", "arch.type=DeepLab"]
    assert apply_overrides(config, overrides) == {
        "arch": {"type": "DeepLab", "args": {"backbone": "resnet18"}}}


@pytest.mark.parametrize("overrides, expected", [
    (["loss.args.gamma=1"], {"type": "CE", "args": {"gamma": 1}}),
    (["loss.type=FocalLoss", "loss.args.gamma=1"], {"type": "FocalLoss", "args": {"gamma": 1}}),
    (["loss.args.gamma=1", "loss=FocalLoss"], {"type": "FocalLoss", "args": {"gamma": 1}}),
    (["loss=FocalLoss"], "FocalLoss"), (["loss.weight=2"], {"type": "CE", "weight": 2}),
])
def test_arguments_can_be_given_to_a_class_that_is_named_alone(overrides, expected):
    assert apply_overrides({"loss": "CE"}, overrides) == {"loss": expected}


def test_a_list_of_names_takes_arguments_too():
    config = apply_overrides({"loss": {"out": "CE", "aux": "CE"}, "t": {"transforms": ["Blur"]}},
                             ["loss.aux.weight=0.4", "t.transforms[0].args.p=1"])
    assert config == {"loss": {"out": "CE", "aux": {"type": "CE", "weight": 0.4}},
                      "t": {"transforms": [{"type": "Blur", "args": {"p": 1}}]}}


def test_a_file_can_give_arguments_to_a_class_that_its_parent_names_alone(write):
    write("a.json", {"loss": "CE", "arch": "PSPNet"})
    child = write("c.json", {"extends": "a.json", "loss": {"args": {"weight": [1]}},
                             "arch": {"args": {"bins": [1]}}})
    assert load_config(child) == {"loss": {"type": "CE", "args": {"weight": [1]}},
                                  "arch": {"type": "PSPNet", "args": {"bins": [1]}}}


def test_iterations_replace_epochs_and_the_other_way_round(write):
    path = write("a.json", small(trainer={"epochs": 2, "val": False}))
    child = write("c.json", {"extends": "a.json", "trainer": {"iterations": 7}})
    for config, length in ((load_config(path, ["trainer.iterations=7"]), (None, 7)),
                           (load_config(child), (None, 7)),
                           (load_config(child, ["trainer.epochs=3"]), (3, None))):
        trainer = resolve_config(config)["trainer"]
        assert (trainer["epochs"], trainer["iterations"]) == length
    both = load_config(path, ["trainer.iterations=7", "trainer.epochs=3"])
    assert "got both, 3 and 7; set one of them to null" in only_mistake(both)


def data_dir_of(config):
    return resolve_config(config)["train_loader"]["args"]["data_dir"]


@pytest.fixture
def project(write, monkeypatch, tmp_path):
    """conf/c.json, which names data beside its folder; the current folder is "elsewhere"."""
    path = write("conf/c.json", small(train_loader={
        "type": "VOC", "args": {"data_dir": "../data", "split": "train"}}))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return path


def test_a_path_is_relative_to_the_file_that_states_it(project, write, tmp_path, monkeypatch,
                                                       capsys):
    (tmp_path / "data").mkdir()
    child = write("elsewhere/deep/child.json", {"extends": "../../conf/c.json"})
    assert data_dir_of(load_config(project)) == data_dir_of(load_config(child)) == \
        str(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    assert data_dir_of(load_config("conf/c.json")) == data_dir_of(load_config(project)) == "data"
    assert capsys.readouterr().err == ""


def test_a_path_that_only_the_current_folder_has_is_found_with_a_notice(write, tmp_path, capsys,
                                                                        monkeypatch):
    path = write("conf/c.json", small(train_loader={
        "type": "VOC", "args": {"data_dir": "data", "split": "train"}}))
    monkeypatch.chdir(tmp_path)
    assert data_dir_of(load_config(path)) == os.path.join("conf", "data")      # nothing is there
    (tmp_path / "data").mkdir()
    assert data_dir_of(load_config(path)) == "data"
    assert "relative to the current folder, because nothing is there relative to the config: " \
        "train_loader.args.data_dir data" in capsys.readouterr().err


def test_a_path_of_the_command_line_is_relative_to_the_current_folder(project, tmp_path):
    (tmp_path / "conf" / "mine").mkdir()
    config = load_config(project, ["train_loader.args.data_dir=mine"])
    assert data_dir_of(config) == "mine"


def test_the_weights_to_start_from_are_relative_to_the_config_but_no_name_of_a_run(write, tmp_path):
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "w.pth").touch()
    for start, found in (("w.pth", str(tmp_path / "conf" / "w.pth")), ("run:a", "run:a")):
        path = write("conf/c.json", small(trainer={"epochs": 1, "finetune_from": start}))
        assert resolve_config(load_config(path))["trainer"]["finetune_from"] == found


def test_digits_typed_for_a_text_key_stay_text():
    assert resolve_config(apply_overrides(small(), ["name=0050"]))["name"] == "0050"
    assert resolve_config(apply_overrides(small(), ["name=1e3"]))["name"] == "1e3"
    assert "name: expected string, found 50 (int)" in only_mistake(small(name=50))


def test_a_misspelled_override_is_reported_with_the_nearest_key():
    config = apply_overrides(small(), ["trainer.epoch=5"])
    assert only_mistake(config) == \
        "trainer.epoch: unknown key. Did you mean 'epochs'? (command line)"


@given(st.lists(st.tuples(
    st.sampled_from(["arch", "loss", "trainer.epochs", "train_loader.args", "a", "loss[0]", "x.0",
                     "optimizer.args.lr", "arch.type", "predict.CoI", "extends"])
    | st.text("a.[0]", max_size=6), st.sampled_from(["=", "+=", ""]),
    st.text('{}[]",:1ae~$', max_size=6) | JSON.map(json.dumps)), max_size=3))
@settings(max_examples=250, deadline=None,
          suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_override_is_applied_or_a_config_error(parts):
    try:
        resolve_config(apply_overrides(small(), ["".join(part) for part in parts]))
    except ConfigError:
        pass


def test_a_saved_config_reads_back_the_same_and_leaves_no_other_file(tmp_path):
    resolved = resolve_config(small(name="Größe \U0001f6b2"))
    path = tmp_path / "config.json"
    save_config({"old": True}, path)
    save_config(resolved, path)
    assert load_config(path) == resolved
    assert os.listdir(tmp_path) == ["config.json"]
    assert path.stat().st_mode & 0o777 == 0o666 & ~_umask()


def test_a_config_that_cannot_be_written_leaves_the_old_one(tmp_path):
    path = tmp_path / "config.json"
    save_config({"old": True}, path)
    with pytest.raises(ValueError):
        save_config({"bad": float("nan")}, path)
    assert json.loads(path.read_text()) == {"old": True}
    assert os.listdir(tmp_path) == ["config.json"]
    with pytest.raises(ConfigError, match="cannot be written"):
        save_config({}, tmp_path / "none" / "config.json")


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def chain_of(folder, count, parents):
    """A config that is extended by `count` files in a row, each `parents` times; the last file."""
    last = write(folder / "c0.json", {"seed": 5, "trainer": {"epochs": 3}})
    for k in range(1, count + 1):
        last = write(folder / f"c{k}.json", {"extends": [f"c{k - 1}.json"] * parents})
    return last


def write(path, content):
    path.write_text(json.dumps(content))
    return path


def test_a_file_that_is_extended_over_many_ways_is_read_once(tmp_path):
    # Read at every mention these would be 2 ** 40 files.
    config = load_config(chain_of(tmp_path, 40, 2))
    assert config == {"seed": 5, "trainer": {"epochs": 3}}
    assert config.places["trainer", "epochs"] == f"{tmp_path / 'c0.json'}:1"


@pytest.mark.slow
def test_files_that_extend_each_other_without_end_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="more than 100 files extend each other"):
        load_config(chain_of(tmp_path, 150, 1))
    write(tmp_path / "wide.json", {f"k{k}": k for k in range(20000)})
    path = write(tmp_path / "many.json", {"extends": ["wide.json"] * 1000})
    with pytest.raises(ConfigError, match="hold more than 300000 values"):
        load_config(path)


def test_two_wide_files_are_merged_in_the_time_of_two(tmp_path):
    # With a search over all keys for each key it took hours.
    wide = {f"k{k}": k for k in range(20000)}
    write(tmp_path / "wide.json", wide)
    path = write(tmp_path / "child.json", {"extends": "wide.json", **{k: -1 for k in wide}})
    config = load_config(path)
    assert set(config.values()) == {-1} and len(config) == 20000
    assert config.places["k7",] == f"{path}:1"


def test_a_parent_that_is_used_twice_is_not_changed_by_the_first_use(tmp_path):
    write(tmp_path / "base.json", {"loss": {"type": "CE", "args": {"weight": [1, 2]}}})
    write(tmp_path / "other.json", {"extends": "base.json", "loss": {"type": "DC"}})
    path = write(tmp_path / "child.json", {"extends": ["other.json", "base.json"]})
    assert load_config(path) == {"loss": {"type": "CE", "args": {"weight": [1, 2]}}}
    path = write(tmp_path / "child.json", {"extends": ["base.json", "other.json"]})
    assert load_config(path) == {"loss": {"type": "DC"}}


def test_an_override_of_a_hundred_keys_is_no_path(tmp_path):
    with pytest.raises(ConfigError, match="is not a path of keys"):
        apply_overrides({}, [".".join("a" * 5000) + "=1"])


@pytest.mark.parametrize("text, words", [
    ('{"extends": "a\\u0000b"}', "NUL"), ('{"name": "a\\ud800"}', "a lone surrogate"),
    ('{"trainer": {"save_dir": "x\\u0000"}}', "NUL")])
def test_texts_that_no_path_can_contain_are_refused_with_their_line(tmp_path, text, words):
    path = tmp_path / "c.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=f"the string contains .*{words}(.|\n)*c.json:1:"):
        load_config(path)
    with pytest.raises(ConfigError, match=f"{words}(.|\n)*command line"):
        apply_overrides({}, ["name=" + text.partition(": ")[2].rpartition("}")[0]])


def test_a_file_name_that_is_not_utf_8_can_be_given(tmp_path):
    assert apply_overrides({}, ["name=a\udcff"]) == {"name": "a\udcff"}
