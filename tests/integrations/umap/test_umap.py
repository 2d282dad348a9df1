"""Clusters of relevance maps, placed in the plane by UMAP."""

import sys
import warnings
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "data"))
from watermark import LABELS, images, pixels_of, trained

import lrp_fx
from lrp_fx import concepts


def test_images_with_the_watermark_lie_apart(tmp_path):
    pixels, _, has_mark = images(120)
    lrp_fx.run(
        trained(), list(pixels), out=tmp_path, image="image", image_processor=pixels_of, labels=LABELS,
        rules="attnlrp", progress=False,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # UMAP warns of settings that do not fit
        few = concepts.spray(tmp_path, embedding="umap", most=8)["horizontal"]
        found = concepts.spray(tmp_path, embedding="umap", clusters=2)["vertical"]
    assert few.places.shape == (8, 2) and found.places.shape == (len(found.rows), 2)
    marked, others = (found.places[has_mark[found.rows] == mark] for mark in (True, False))
    apart = np.linalg.norm(marked.mean(0) - others.mean(0))
    assert apart > 1.5 * max(marked.std(), others.std())
