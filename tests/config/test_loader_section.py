"""Which images a loader section reads for evaluation, and at which size."""
import pytest

from utils.config.loader_section import at_own_size, read_size, validated_size


def section(*parts, **args):
    args |= {"parts": [{"type": "Folder", "args": part} for part in parts]} if parts else {}
    return {"type": "Folder", "args": {"batch_size": 2, **args}}


@pytest.mark.parametrize("given,size", [
    (section(), None), (section(base_size=512), 512), (section(base_size=None), None),
    (section(val=True, crop_size=[32, 48]), [32, 48]), (section(val=True, crop_size=40), [40, 40]),
    (section(val=True, crop_size=40, base_size=512), [40, 40]), (section(val=True), None),
    (section(val=True, base_size=512, crop_size=None), 512),
    (section(augment=True, crop_size=40, base_size=512), None),
    (section({}, {}, base_size=512), 512), (section({"base_size": 9}, {"base_size": 9}), 9),
    (section({"base_size": 9}, {}), None), (section({"base_size": 9}, {"base_size": 8}), None),
    (section({"base_size": 9}, {}, base_size=512), None), (None, None),
    ({"type": "Shapes"}, None)])
def test_the_size_at_which_images_are_read(given, size):
    assert read_size(given) == size
    own = at_own_size(given) if given else None
    if size is None:
        assert own == given     # several sizes, random crops: nothing is changed
    else:
        assert read_size(own) is None and own["args"]["batch_size"] == 2
        assert own["type"] == given["type"] and read_size(given) == size


def test_the_size_of_validation_is_that_of_val_loader_or_else_test_loader():
    train, val, test = section(base_size=1), section(base_size=2), section(base_size=3)
    loaders = {"train_loader": train, "val_loader": val, "test_loader": test}
    assert validated_size(loaders) == 2
    assert validated_size({**loaders, "val_loader": None}) == 3
    assert validated_size({"train_loader": train}) is None
    assert validated_size({**loaders, "val_loader": section()}) is None
