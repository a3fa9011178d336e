"""Criterion: the forms of the config section, several outputs, other sizes, golden totals."""
import json
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.support.places import ROOT, SHARED
from utils.config.registry import components
from utils.errors import ConfigError
from utils.losses import build_loss
from utils.segfix.targets import segfix_targets
from utils.training.criterion import Criterion, validation_loss

GOLDEN = SHARED / "losses/cases.npz"
TWO = {"out": 1.0, "aux": 0.4}


@pytest.fixture(scope="module")
def golden():
    if not GOLDEN.exists():
        pytest.skip("the golden values (../shared/losses) are not here")
    with np.load(GOLDEN) as file:
        return {key[6:]: torch.tensor(file[key]) for key in file.files if key.startswith("extra/")}


def outputs_and_batch(names=("out", "aux"), num_classes=4, size=(6, 7)):
    generator = torch.Generator().manual_seed(2)
    outputs = {name: torch.randn(2, num_classes, *size, generator=generator).requires_grad_()
               for name in names}
    label = torch.randint(0, num_classes, (2, *size), generator=generator)
    label[:, 0] = 255
    return outputs, {"label": label.to(torch.uint8)}


def test_one_loss_goes_to_every_output_with_the_models_weights():
    outputs, batch = outputs_and_batch()
    total, parts = Criterion("CE", TWO)(outputs, batch)
    ce = build_loss("CE")
    expected = {name: ce(x, batch["label"]) for name, x in outputs.items()}
    torch.testing.assert_close(total, expected["out"] + 0.4 * expected["aux"])
    assert parts.keys() == TWO.keys()
    assert all(torch.equal(parts[name], expected[name].detach()) for name in TWO)
    assert not parts["out"].requires_grad and parts["out"].shape == ()


def test_the_three_forms_agree():
    outputs, batch = outputs_and_batch()
    section = {"type": "FocalLoss", "args": {"gamma": 1.5}}
    forms = [Criterion(section, TWO), Criterion({"out": section, "aux": section}, TWO),
             Criterion([section, section], TWO), Criterion([section, section], TWO, 255, [1, 0.4])]
    totals = [criterion(outputs, batch)[0] for criterion in forms]
    assert all(torch.equal(total, totals[0]) for total in totals)


def test_a_weight_in_the_section_replaces_the_models_weight():
    outputs, batch = outputs_and_batch()
    criterion = Criterion({"out": "CE", "aux": {"type": "DC", "weight": 2}}, TWO)
    total, parts = criterion(outputs, batch)
    assert criterion.weights == {"out": 1.0, "aux": 2.0}
    torch.testing.assert_close(total.detach(), parts["out"] + 2 * parts["aux"])


def test_loss_weights_need_a_list_of_losses():
    criterion = Criterion(["wRMI", "wCE"], TWO, loss_weights=[1, 0.5])
    assert criterion.weights == {"out": 1.0, "aux": 0.5} and criterion.activation == "sigmoid"


def test_a_named_target_is_read_from_the_batch():
    outputs, batch = outputs_and_batch(names=("out",))
    batch["edges"] = 3 - batch["label"].long().clamp(0, 3)
    criterion = Criterion({"out": {"type": "CE", "target": "edges"}}, {"out": 1.0})
    expected = build_loss("CE")(outputs["out"], batch["edges"])
    torch.testing.assert_close(criterion(outputs, batch)[0], expected)


@pytest.mark.parametrize("resize, how", [
    (None, {"mode": "bilinear", "align_corners": False}),
    ("logits_align_corners", {"mode": "bilinear", "align_corners": True})])
def test_small_logits_are_scaled_to_the_target(resize, how):
    outputs, batch = outputs_and_batch(names=("out",), size=(8, 10))
    small = {"out": torch.randn(2, 4, 4, 5)}
    section = {"type": "CE", **({"resize": resize} if resize else {})}
    expected = build_loss("CE")(F.interpolate(small["out"], (8, 10), **how), batch["label"])
    torch.testing.assert_close(Criterion(section, {"out": 1.0})(small, batch)[0], expected)


@pytest.mark.parametrize("size", [(4, 5), (3, 7), (8, 10), (5, 4)])
def test_a_target_is_scaled_to_small_logits_as_torch_does_nearest(size):
    _, batch = outputs_and_batch(names=("out",), size=(8, 10))
    small = {"out": torch.randn(2, 4, *size)}
    label = F.interpolate(batch["label"][:, None].float(), size, mode="nearest")[:, 0]
    expected = build_loss("CE")(small["out"], label.long())
    criterion = Criterion({"type": "CE", "resize": "target"}, {"out": 1.0})
    torch.testing.assert_close(criterion(small, batch)[0], expected)


def test_a_loss_over_two_outputs_takes_both_and_its_own_targets():
    outputs = {"mask": torch.randn(1, 2, 4, 4), "direction": torch.randn(1, 8, 4, 4)}
    batch = {"label": torch.zeros(1, 8, 8).long(), "boundary": torch.randint(0, 2, (1, 8, 8)),
             "direction": torch.randint(0, 8, (1, 8, 8))}
    weights = {"mask": 1.0, "direction": 1.0}
    total, parts = Criterion("SegFixLoss", weights)(outputs, batch)
    again, _ = Criterion({"mask+direction": "SegFixLoss"}, weights)(outputs, batch)
    assert torch.equal(total, again)
    torch.testing.assert_close(parts["mask+direction.mask"] + parts["mask+direction.direction"],
                               total)


def test_parts_of_a_loss_are_logged_under_its_output():
    outputs, batch = outputs_and_batch(size=(12, 12))
    _, parts = Criterion(["RMI", "CE"], TWO)(outputs, batch)
    assert parts.keys() == {"out", "out.bce", "out.rmi", "aux"}


def test_valid_pixels_counts_the_labelled_ones():
    _, batch = outputs_and_batch()
    assert Criterion("CE", TWO).valid_pixels(batch) == 2 * 5 * 7


def test_micro_batches_weighted_by_their_valid_pixels_equal_the_whole_batch():
    outputs, batch = outputs_and_batch(names=("out",))
    batch["label"][0, 2:5] = 255        # so that the halves differ in labelled pixels
    criterion = Criterion("CE", {"out": 1.0})
    whole, _ = criterion(outputs, batch)
    halves = [({"out": outputs["out"][i:i + 1]}, {"label": batch["label"][i:i + 1]})
              for i in range(2)]
    counts = [criterion.valid_pixels(half[1]) for half in halves]
    pairs = zip(halves, counts, strict=True)
    combined = sum(criterion(*half)[0] * n for half, n in pairs) / sum(counts)
    torch.testing.assert_close(combined, whole)


def test_a_batch_without_labels_gives_zero_and_no_gradient():
    outputs, batch = outputs_and_batch()
    batch["label"].fill_(255)
    total, _ = Criterion(["CE_DiceLoss", "FocalLoss"], TWO)(outputs, batch)
    total.backward()
    assert total == 0 and all((x.grad == 0).all() for x in outputs.values())


@pytest.mark.parametrize("section, weights, text", [
    ({"out": "CE"}, None, "no loss for the output aux"),
    ({"out": "CE", "au": "CE"}, None, "Did you mean 'aux'"),
    (["CE"], None, "1 losses for 2 outputs"),
    (["CE", "CE"], [1], "1 weights for 2 outputs"),
    ("CE", [1, 1], "loss_weights has an effect only"),
    ({"type": "CE", "wieght": 1}, None, "Did you mean 'weight'"),
    ({"out": "CE", "aux": "Ce2"}, None, "loss.aux.type"),
    ({"out+aux": "CE"}, None, "reads one output"),
    ("SegFixLoss", None, "reads the outputs mask, direction"),
    ({"type": "CE", "resize": "label"}, None, "loss.resize"),
    ({"type": "CE", "weight": 0}, None, "every loss has the weight 0"),
    (["CE", "CE"], [0, 0], "every loss has the weight 0"),
    (3, None, "expected a name"),
    ({}, None, "expected a name"),
])
def test_mistakes_are_config_errors_that_name_the_place(section, weights, text):
    with pytest.raises(ConfigError, match=text.replace("[", r"\[")):
        Criterion(section, TWO, 255, weights)


def test_class_weights_of_another_length_are_found_before_the_first_batch():
    with pytest.raises(ConfigError, match="3 class weights for 5 classes"):
        Criterion({"type": "CE", "args": {"weight": [1, 1, 1]}}, {"out": 1.0}, num_classes=5)


def test_class_weights_of_another_length_are_an_error_in_the_step():
    outputs, batch = outputs_and_batch(names=("out",))
    with pytest.raises(ConfigError, match="5 class weights for 4 classes"):
        Criterion({"type": "CE", "args": {"weight": [1] * 5}}, {"out": 1.0})(outputs, batch)


def test_a_missing_output_of_the_model_is_named():
    outputs, batch = outputs_and_batch(names=("out",))
    with pytest.raises(ConfigError, match="needs the output 'aux'"):
        Criterion("CE", TWO)(outputs, batch)


def test_an_output_with_other_channels_than_there_are_classes_is_named():
    outputs, batch = outputs_and_batch(names=("out",))
    count = outputs["out"].shape[1]
    assert Criterion("CE", {"out": 1.0}, num_classes=count)(outputs, batch)[0].isfinite()
    with pytest.raises(ConfigError, match=f"'out' has {count} channels, the labels have 9"):
        Criterion("CE", {"out": 1.0}, num_classes=9)(outputs, batch)


def test_an_output_without_a_channel_per_class_needs_the_loss_that_it_was_made_for():
    outputs, batch = outputs_and_batch(names=("out",))
    outputs["edge"] = outputs["out"][:, :1]
    weights = {"out": 1.0, "edge": 2.0}
    section = {"out": "CE", "edge": "BoundaryBCELoss"}
    assert Criterion(section, weights, num_classes=4)(outputs, batch)[0].isfinite()
    with pytest.raises(ConfigError, match="'edge' has 1 channel, the labels have 4 classes"):
        Criterion("CE", weights, num_classes=4)(outputs, batch)
    with pytest.raises(ConfigError, match="'out' has 4 channels, BoundaryBCELoss needs 1"):
        Criterion({"out": "BoundaryBCELoss"}, {"out": 1.0}, num_classes=4)(outputs, batch)


def test_an_output_with_a_loss_of_its_own_may_be_read_by_another():
    weights = {"out": 1.0, "d": 2.0}
    section = {"out": "CE", "d": "BoundaryBCELoss", "out+d": "BoundaryOhemCrossEntropy"}
    criterion = Criterion(section, weights, num_classes=4)
    assert criterion.weights == {**weights, "out+d": 1.0}
    assert criterion.inverse.reason == 'the output "out" has several losses'


def test_a_missing_target_of_the_dataset_is_named():
    outputs, batch = outputs_and_batch(names=("out",))
    with pytest.raises(ConfigError, match="needs the target 'edges'"):
        Criterion({"out": {"type": "CE", "target": "edges"}}, {"out": 1.0})(outputs, batch)


# --- golden totals -------------------------------------------------------------------------------

MIXTURE = {"type": "MixedLoss", "args": {"losses": [
    {"type": "ClassDiceLoss"},
    {"type": "BootstrappedCrossEntropyLoss", "args": {"min_K": 50, "loss_th": 0.05}}]}}
BCE = {"type": "RMI", "args": {"do_rmi": False}}
WEIGHTS = [0.5, 0.75, 1.0, 1.25, 1.5]
FOUR = {
    "ce_ce_ce_ce": "CE",
    "wrmi_wce_wce_wce": [{"type": "wRMI", "args": {"weight": WEIGHTS}}]
    + [{"type": "wCE", "args": {"weight": WEIGHTS}}] * 3,
    "rmi_avg4_bce_bce_bce": [{"type": "RMI", "args": {"pool": "avg", "stride": 4}}, BCE, BCE, BCE],
    "dice_plus_bootstrapped": MIXTURE,
}


@pytest.mark.parametrize("name", FOUR)
def test_four_outputs_give_the_golden_total(golden, name):
    names = ("out", "aux", "half", "full")
    outputs = {key: golden[f"multi4/logits{i}"].double().requires_grad_()
               for i, key in enumerate(names)}
    weights = dict(zip(names, golden["multi4/weights"].tolist(), strict=True))
    total, _ = Criterion(FOUR[name], weights)(outputs, {"label": golden["multi4/target"]})
    total.backward()
    assert total.item() == pytest.approx(golden[f"multi4/{name}/value"].item(), rel=1e-9)
    for i, key in enumerate(names):
        slope = golden[f"multi4/{name}/grad{i}"].double()
        assert (outputs[key].grad - slope).abs().max() <= 1e-6 * slope.abs().max()


def test_targets_scaled_to_the_outputs_give_the_golden_total(golden):
    outputs = {"out": golden["fs_aux_ce/seg_logits"].double().requires_grad_(),
               "aux": golden["fs_aux_ce/aux_logits"].double().requires_grad_()}
    criterion = Criterion({"type": "CE", "resize": "target"}, TWO, -1)
    total, _ = criterion(outputs, {"label": golden["fs_aux_ce/target"]})
    total.backward()
    assert total.item() == pytest.approx(golden["fs_aux_ce/value"].item(), rel=1e-9)
    for name, key in (("out", "seg"), ("aux", "aux")):
        slope = golden[f"fs_aux_ce/grad_{key}"].double()
        assert (outputs[name].grad - slope).abs().max() <= 1e-6 * slope.abs().max()


@pytest.mark.parametrize("name, main", [
    ("ce", {"type": "CE"}),
    ("ohem_t0.7_k60", {"type": "OhemCrossEntropy", "args": {"thresh": 0.7, "min_kept": 60}})])
def test_outputs_scaled_to_the_target_give_the_golden_total(golden, name, main):
    outputs = {"aux": golden["hrnet_two_outputs/aux_logits"].double().requires_grad_(),
               "out": golden["hrnet_two_outputs/main_logits"].double().requires_grad_()}
    section = {"aux": {"type": "CE", "resize": "logits_align_corners"},
               "out": {**main, "resize": "logits_align_corners"}}
    criterion = Criterion(section, {"aux": 0.4, "out": 1.0})
    total, _ = criterion(outputs, {"label": golden["hrnet_two_outputs/target"]})
    total.backward()
    path = f"hrnet_two_outputs/{name}/correct"
    assert total.item() == pytest.approx(golden[f"{path}/value"].item(), rel=1e-9)
    for key, output in (("main", "out"), ("aux", "aux")):
        slope = golden[f"{path}/grad_{key}"].double()
        assert (outputs[output].grad - slope).abs().max() <= 1e-6 * slope.abs().max()


def test_segfix_gives_the_golden_total_on_small_outputs(golden):
    boundary, direction = segfix_targets(
        golden["segfix/seg_label"], golden["segfix/distance"], golden["segfix/angle"],
        ignore_index=-1)
    outputs = {key: golden[f"segfix/{key}_logits"].double() for key in ("mask", "direction")}
    criterion = Criterion("SegFixLoss", {"mask": 1.0, "direction": 1.0}, -1)
    total, _ = criterion(outputs, {"label": golden["segfix/seg_label"], "boundary": boundary,
                                   "direction": direction})
    assert total.item() == pytest.approx(golden["segfix/value"].item(), rel=1e-9)


def test_a_val_loss_does_not_build_the_training_loss():
    """The training loss may need files of another machine."""
    config = {"val_loss": "CE", "ignore_index": 255}
    loss = validation_loss(config, lambda: pytest.fail("the training loss was made"))
    assert isinstance(loss, type(build_loss("CE")))
    assert validation_loss({"val_loss": None}, lambda: None) is None
    criterion = Criterion("CE", {"out": 1.0})
    assert validation_loss({"val_loss": None}, lambda: criterion) is criterion.main_loss


# --- the loss lines of docs/losses.md ---------------------------------------------------------

DOCUMENT = ROOT / "docs/losses.md"
LINES = [text for text in re.findall(r"```json\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"),
                                     re.DOTALL) if '"loss"' in text]


@pytest.mark.parametrize("text", LINES)
def test_every_loss_line_in_the_document_can_be_used(text):
    config = json.loads(text)
    section, count = config["loss"], 2
    if isinstance(section, list):
        count = len(section)
    all_weights = {"out": 1.0, "aux": 0.4, "pred_05x": 0.05, "pred_10x": 0.05}
    weights = dict(list(all_weights.items())[:count])
    if isinstance(section, dict) and "d" in section:
        weights = {"out": 1.0, "p": 0.4, "d": 20.0}
    num_classes = 3 if "class_pixels" in text else 19
    criterion = Criterion(section, weights, 255, config.get("loss_weights"), num_classes)
    outputs, batch = outputs_and_batch(weights, num_classes, (12, 15))
    outputs |= {name: outputs[name][:, :1] for name in weights if name == "d"}
    total, parts = criterion(outputs, batch)
    total.backward()
    assert total.isfinite() and set(weights) <= set(parts)


def test_the_document_names_every_loss():
    text = DOCUMENT.read_text(encoding="utf-8")
    assert [name for name, cls in components("losses").items()
            if name == cls.__name__ and f"`{name}`" not in text] == []


def test_a_loss_that_counts_over_all_processes_needs_their_plain_mean():
    criterion = Criterion("MaskClassificationLoss", {"masks": 1.0, "classes": 1.0})
    criterion.require_average("pixels", processes=1)
    criterion.require_average("ranks", processes=2)
    with pytest.raises(ConfigError, match="on all 2 processes") as error:
        criterion.require_average("pixels", processes=2)
    assert 'set it to "ranks"' in str(error.value)
    Criterion("CE", {"out": 1.0}).require_average("pixels", processes=2)
