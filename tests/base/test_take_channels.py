"""Networks that are made for RGB take images of other bands."""
import pytest
import torch

from tests.models.test_models import built, construct, every_architecture
from utils.checkpoint.load import load_foreign
from utils.checkpoint.write import write_checkpoint
from utils.config.build import build
from utils.errors import ConfigError

UNET = {"type": "UNet", "args": {}}


@every_architecture
def test_the_first_convolution_of_a_network_is_that_of_the_image(name):
    found = built(name)[0].first_convolution()
    assert found is not None and found[1].in_channels == 3


@pytest.mark.slow
@pytest.mark.parametrize("channels", [1, 4])
@every_architecture
def test_a_network_sees_every_band(name, channels):
    model, _ = construct(name)
    model.take_channels(channels).eval()
    image = torch.randn(1, channels, 64, 96, requires_grad=True)
    output = model(image)
    output = output if isinstance(output, torch.Tensor) else next(iter(output.values()))
    output.float().square().sum().backward()
    assert (image.grad.abs().sum((0, 2, 3)) > 0).all()


@pytest.mark.parametrize("channels", [1, 2, 4, 7])
def test_kept_weights_give_equal_bands_what_they_gave_gray(channels):
    model = build("models", UNET, num_classes=2).eval()
    gray = torch.randn(1, 1, 32, 32)
    with torch.inference_mode():
        before = model(gray.expand(-1, 3, -1, -1))
        model.take_channels(channels, pretrained=True)
        after = model(gray.expand(-1, channels, -1, -1))
    if channels in (1, 3):
        torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)
    weight = model.first_convolution()[1].weight
    assert weight.shape[1] == channels
    rgb = build("models", UNET, num_classes=2).first_convolution()[1].weight
    adapted = model.adapted_weight(rgb, channels)
    factor = 1 if channels == 1 else 3 / channels
    expected = rgb.sum(1, keepdim=True) if channels == 1 else torch.stack(
        [rgb[:, band % 3] * factor for band in range(channels)], 1)
    torch.testing.assert_close(adapted, expected)


def test_random_weights_are_drawn_again_with_the_same_variance_of_the_output():
    torch.manual_seed(0)
    rgb = build("models", UNET, num_classes=2).first_convolution()[1].weight
    bands = build("models", UNET, num_classes=2, in_channels=12).first_convolution()[1].weight
    assert bands.var().item() * 12 == pytest.approx(rgb.var().item() * 3, rel=0.1)
    assert not torch.allclose(bands[:, :3], bands[:, 3:6])


def test_three_channels_change_nothing():
    torch.manual_seed(0)
    one = build("models", UNET, num_classes=2).state_dict()
    torch.manual_seed(0)
    other = build("models", UNET, num_classes=2, in_channels=3).state_dict()
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_fine_tuning_adapts_the_first_convolution_of_a_file(tmp_path):
    source = build("models", UNET, num_classes=2)
    write_checkpoint(tmp_path / "rgb.pth", {"model": source.state_dict()})
    model = build("models", UNET, num_classes=2, in_channels=4)
    report = load_foreign(model, tmp_path / "rgb.pth")
    name, convolution = model.first_convolution()
    assert report.adapted == f"{name}.weight" and report.exact
    assert f"adapted from RGB to other bands: {name}.weight" in str(report)
    torch.testing.assert_close(convolution.weight, model.adapted_weight(
        source.first_convolution()[1].weight, 4))


def test_a_network_that_was_adapted_is_not_adapted_again():
    model = build("models", UNET, num_classes=2, in_channels=4)
    with pytest.raises(ConfigError, match="takes RGB only; the images have 5 bands"):
        model.take_channels(5)
