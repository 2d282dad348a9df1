"""Draw docs/spray.png: SpRAy on images with a planted watermark (tests/integrations/data/watermark.py).

    python tools/watermark.py            needs the extras data and spray

It prints the adjusted Rand index of the clusters with what was planted.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from PIL import Image
from sklearn.metrics import adjusted_rand_score

import lrp_fx
from lrp_fx import concepts
from lrp_fx.files import replacing

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests" / "integrations" / "data"))

from watermark import LABELS, images, pixels_of, trained

PICTURE = ROOT / "docs" / "spray.png"


def main() -> None:
    pixels, _, has_mark = images(400)
    with tempfile.TemporaryDirectory() as home:
        folder = Path(home) / "images"
        folder.mkdir()
        for number, image in enumerate(pixels):
            Image.fromarray(image).save(folder / f"{number:03d}.png")
        out = Path(home) / "run"
        run = lrp_fx.run(
            trained(), folder, out=out, image_processor=pixels_of, labels=LABELS, rules="attnlrp", progress=False
        )
        clusters = concepts.spray(out)["vertical"]
    score = adjusted_rand_score(has_mark[clusters.rows], clusters.labels)
    print(f"{run}\n{len(clusters)} clusters of 'vertical', adjusted Rand index {score:.3f}")
    with replacing(PICTURE) as beside:
        clusters.plot().savefig(beside, dpi=80)


if __name__ == "__main__":
    main()
