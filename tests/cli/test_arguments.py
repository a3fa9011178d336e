"""The parser of all command lines, and the types of their values."""
import argparse
import importlib

import pytest

from utils.cli import console
from utils.cli.arguments import (
    add_overrides,
    at_least,
    command_parser,
    device,
    parse_with_overrides,
    size,
)


@pytest.mark.parametrize("kind, text, value", [
    (at_least(1), "1", 1), (at_least(0), "0", 0), (size, "512", (512, 512)),
    (size, "512x1024", (512, 1024)), (device, "cuda:1", "cuda:1"),
])
def test_a_text_becomes_the_value_of_its_type(kind, text, value):
    assert kind(text) == value


@pytest.mark.parametrize("kind, text, message", [
    (at_least(1), "0", "must be at least 1, found 0"),
    (at_least(1), "x", "'x' is not a whole number"),
    (at_least(1), "1.5", "not a whole number"), (size, "0", "not a size"),
    (size, "512x0", "not a size"), (device, "gpu", "not a device"),
])
def test_a_wrong_value_is_an_error_with_a_reason(kind, text, message):
    with pytest.raises(argparse.ArgumentTypeError, match=message):
        kind(text)


def test_a_usage_error_names_the_argument(capsys):
    parser = command_parser("python -m tools.some", "Does something.\n\n  indented")
    parser.add_argument("--workers", type=at_least(1))
    assert not parser.parse_args(["--workers", "2"]).debug
    with pytest.raises(SystemExit) as exit_:
        parser.parse_args(["--workers", "0"])
    assert exit_.value.code == 2
    assert "argument --workers: must be at least 1, found 0" in capsys.readouterr().err


def test_overrides_can_stand_anywhere_and_need_a_value(capsys):
    parser = command_parser("train.py", "Trains.")
    add_overrides(parser, "trainer.epochs=5")
    args = parse_with_overrides(parser, ["a.b=c=d", "--debug", "e=1"])
    assert args.debug and args.overrides == ["a.b=c=d", "e=1"]
    for argv, message in ((["a.b"], "expected KEY=VALUE, found 'a.b'"),
                       (["--epochs", "3"], "unrecognized arguments: --epochs")):
        with pytest.raises(SystemExit):
            parse_with_overrides(parser, argv)
        assert message in capsys.readouterr().err


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
def test_a_missing_output_folder_is_an_error_before_the_work(tool, arguments, option, tmp_path,
                                                            capsys):
    main = importlib.import_module(f"tools.{tool}").main
    place = tmp_path / "nowhere" / "file.onnx"
    assert console.run(main, [*arguments, *filter(None, [option]), str(place)]) == 3
    message = capsys.readouterr().err
    assert f"no such folder\n  where: {place.parent}\n" in message


def test_help_ends_with_the_exit_statuses():
    text = command_parser("train.py", "Does something.\n\n  indented", "examples\n").format_help()
    assert "\n  indented\n" in text and "--debug" in text
    assert text.index("examples") < text.index("exit status: 0 success")
