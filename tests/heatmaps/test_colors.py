"""The colours are uniform, in gamut, and apart for people who see fewer of them."""

import numpy as np
import pytest

from mlx_convnextv2.heatmaps import colors

# Machado, Oliveira and Fernandes 2009, severity 1.0, on linear sRGB.
BLINDNESS = {
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def to_linear(srgb):
    srgb = np.asarray(srgb) / 255
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


def to_lab(linear):
    """CIELAB under D65, the standard's own measure of differences, rather than the space that the table is made in."""
    xyz = (
        linear
        @ np.array(
            [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
        ).T
    )
    x = xyz / [0.95047, 1.0, 1.08883]
    f = np.where(x > (6 / 29) ** 3, np.cbrt(x), x / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.stack([116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], axis=-1)


@pytest.mark.parametrize("grey", [0, 100, 255])
def test_equal_steps_of_a_value_look_equal(grey):
    lab = to_lab(to_linear(colors.table()[grey, 15::16]))  # 8 bits round single steps
    steps = np.linalg.norm(np.diff(lab, axis=0), axis=-1)
    for arm in (steps[:7], steps[7:]):
        assert arm.max() / arm.min() < 2  # CIELAB, too, is only roughly uniform


def test_lightness_is_the_pictures_whatever_the_value():
    lightness = to_lab(to_linear(colors.table()))[..., 0]
    assert (np.ptp(lightness, axis=1) < 9).all()  # CIELAB's own idea of lightness differs a little between hues
    assert (np.diff(lightness[:, colors.STEPS]) >= 0).all()
    assert lightness[255].min() - lightness[0].max() > 25


def test_no_colour_is_clipped():
    """Else steps at the ends would be smaller: the strongest colour differs from the one before in every row."""
    table = colors.table().astype(int)
    assert (np.abs(table[:, 0] - table[:, 8]).max(axis=-1) >= 2).all()
    assert (np.abs(table[:, -1] - table[:, -9]).max(axis=-1) >= 2).all()
    assert table.min() >= 0
    assert table.max() <= 255


@pytest.mark.parametrize("kind", BLINDNESS)
@pytest.mark.parametrize("grey", [0, 128, 255])
def test_for_against_and_nothing_stay_apart_for_the_colour_blind(kind, grey):
    linear = (to_linear(colors.table()[grey]) @ np.array(BLINDNESS[kind]).T).clip(0, 1)
    against, nothing, speaks_for = to_lab(linear)[[0, colors.STEPS, -1]]
    assert np.linalg.norm(speaks_for - against) > 20
    assert min(np.linalg.norm(speaks_for - nothing), np.linalg.norm(against - nothing)) > 8


def test_values_beyond_the_ends_have_the_colours_of_the_ends():
    grey = np.array([10, 10], np.uint8)
    assert np.array_equal(colors.color(grey, np.array([-9.0, 9.0])), colors.table()[10, [0, -1]])
