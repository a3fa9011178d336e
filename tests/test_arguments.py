import argparse
import importlib

import pytest

from utils import console
from utils.arguments import (add_overrides, at_least, command_parser, device,
                             parse_with_overrides, size)


@pytest.mark.parametrize("kind, text, value", [
    (at_least(1), "1", 1), (at_least(0), "0", 0), (size, "512", (512, 512)),
    (size, "512x1024", (512, 1024)), (device, "cuda:1", "cuda:1"),
])
def test_values(kind, text, value):
    assert kind(text) == value


@pytest.mark.parametrize("kind, text, said", [
    (at_least(1), "0", "must be at least 1, got 0"), (at_least(1), "x", "'x' is no whole number"),
    (at_least(1), "1.5", "no whole number"), (size, "0", "no size"),
    (size, "512x0", "no size"), (device, "gpu", "no device"),
])
def test_other_values_are_refused_in_words(kind, text, said):
    with pytest.raises(argparse.ArgumentTypeError, match=said):
        kind(text)


def test_a_usage_error_names_the_argument(capsys):
    parser = command_parser("python -m tools.some", "Does something.\n\n  indented")
    parser.add_argument("--workers", type=at_least(1))
    assert not parser.parse_args(["--workers", "2"]).debug
    with pytest.raises(SystemExit) as exit_:
        parser.parse_args(["--workers", "0"])
    assert exit_.value.code == 2
    assert "argument --workers: must be at least 1, got 0" in capsys.readouterr().err


def test_overrides_stand_anywhere_and_have_a_value(capsys):
    parser = command_parser("train.py", "Trains.")
    add_overrides(parser, "trainer.epochs=5")
    args = parse_with_overrides(parser, ["a.b=c=d", "--debug", "e=1"])
    assert args.debug and args.overrides == ["a.b=c=d", "e=1"]
    for argv, said in ((["a.b"], "expected KEY=VALUE, got 'a.b'"),
                       (["--epochs", "3"], "unrecognized arguments: --epochs")):
        with pytest.raises(SystemExit):
            parse_with_overrides(parser, argv)
        assert said in capsys.readouterr().err


@pytest.mark.parametrize("tool, arguments, option", [
    ("calibrate", ["-r", "x.pth"], "-o"), ("calibrate", ["-r", "x.pth"], "--write"),
    ("plot_rules", ["-r", "x.pth"], "-o"), ("export", ["-r", "x.pth"], "-o"),
    ("class_statistics", ["-c", "x.json"], "--json"), ("browse", ["-c", "x.json"], "-o"),
    ("class_statistics", ["-c", "x.json"], "--png"),
    ("check_dataset", ["--type", "x", "--args", "{}"], "--json"),
    ("evaluate_labels", ["--dataset", "x", "--gt", "x", "--pred", "x"], "--json"),
    ("evaluate_labels", ["--dataset", "x", "--gt", "x", "--pred", "x"], "--results"),
    ("compare_models", [], "--png"),
    ("convert_checkpoint", ["x", "x.pth"], "")])
def test_a_folder_that_is_not_there_is_found_before_the_work(tool, arguments, option, tmp_path,
                                                            capsys):
    main = importlib.import_module(f"tools.{tool}").main
    place = tmp_path / "nowhere" / "file.onnx"
    assert console.run(main, [*arguments, *filter(None, [option]), str(place)]) == 3
    said = capsys.readouterr().err
    assert f"no such folder\n  where: {place.parent}\n" in said


def test_help_ends_with_the_exit_statuses():
    told = command_parser("train.py", "Does something.\n\n  indented", "examples\n").format_help()
    assert "\n  indented\n" in told and "--debug" in told
    assert told.index("examples") < told.index("exit status: 0 success")
