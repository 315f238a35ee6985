"""Write the tables and the picture of docs/ablation.md from the kept results:  python docs/make_ablation.py

Between `<!-- ablation: NAME -->` and `<!-- end -->` the page gets the command, the table and, for digits, the
picture docs/images/ablation-digits.png, all from benchmarks/ablation-NAME.csv.
"""

import re
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

from marsnn.plots.ablation import accuracy_energy_panels
from marsnn.plots.files import save_figure
from marsnn.tidy import markdown, read_table, summarize

DOCS = Path(__file__).parent
RESULTS = DOCS.parent / "benchmarks"
SECTION = re.compile(r"(<!-- ablation: (\S+) -->\n).*?(<!-- end -->)", flags=re.DOTALL)

COMMANDS = {
    "digits": "--neurons ATMN,LIF,PLIF,ALIF,TernaryLIF,IntegerLIF --steps 1,2,4,8 --seeds 5",
    "selective-copying": "--neurons LIF,ATMN --steps 1,4 --tau 2,8,32 --seeds 5",
    "topics": "--neurons ATMN,LIF,TernaryLIF --steps 1,4 --seeds 5",
}


def section(name: str) -> str:
    """The command, the table and the picture of one task."""
    table = markdown(summarize(read_table(RESULTS / f"ablation-{name}.csv")))
    command = f"    marsnn ablate --task {name} {COMMANDS[name]} --out benchmarks/ablation-{name}.csv\n"
    picture = "\n![Accuracy against energy](images/ablation-digits.png)\n" if name == "digits" else ""
    return f"\n{command}\n{table}\n{picture}\n"


def page(text: str) -> str:
    """The page with every section written anew."""
    return SECTION.sub(lambda found: found[1] + section(found[2]) + found[3], text)


if __name__ == "__main__":
    path = DOCS / "ablation.md"
    path.write_text(page(path.read_text(encoding="utf-8")), encoding="utf-8")
    save_figure(
        accuracy_energy_panels(read_table(RESULTS / "ablation-digits.csv")),
        DOCS / "images/ablation-digits.png",
    )
