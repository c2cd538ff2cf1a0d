"""How well training does on generated textures and shapes, which docs/training.md has at full size."""

import runpy

import pytest
from conftest import ROOT

from mlx_convnextv2.demo import DEMO
from mlx_convnextv2.training import train


@pytest.mark.slow
def test_the_head_alone_learns_textures_and_shapes_and_all_weights_learn_more(tmp_path):
    script = runpy.run_path(str(ROOT / "figures" / "textures_and_shapes.py"))
    data = script["write_pictures"](tmp_path / "pictures", 100)
    assert sum(1 for _ in data.rglob("*.png")) == 800
    head = train(data, DEMO, tmp_path / "head").best
    assert head.val_top1 >= 0.65
    everything = train(data, DEMO, tmp_path / "all", full=True, epochs=6, **script["GENTLE"]).best
    assert everything.epoch > 0
    assert everything.val_top1 > head.val_top1
    assert everything.val_top1 >= 0.78
    assert everything.val_loss < head.val_loss
