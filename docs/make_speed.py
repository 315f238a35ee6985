"""Write the tables and the picture of docs/speed.md from the kept results:  python docs/make_speed.py

Between `<!-- speed -->` and `<!-- end -->` the page gets what `marsnn bench neurons` printed when it wrote
benchmarks/neurons.json, and docs/images/speed.png is drawn from the same file.
"""

import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

from make_refine import written

from marsnn.bench.neurons import markdown
from marsnn.plots.files import save_figure
from marsnn.plots.speed import speed_panels

DOCS = Path(__file__).parent
RESULT = json.loads((DOCS.parent / "benchmarks" / "neurons.json").read_text(encoding="utf-8"))


def page(text: str) -> str:
    """The page with its tables written anew."""
    return written(text, "speed", markdown(RESULT))


if __name__ == "__main__":
    path = DOCS / "speed.md"
    path.write_text(page(path.read_text(encoding="utf-8")), encoding="utf-8")
    save_figure(speed_panels(RESULT), DOCS / "images" / "speed.png")
