"""Write the tables of docs/lava.md from kept results:  python docs/make_hardware.py

benchmarks/blocks.json    marsnn export refined --layer N -i topics --samples 64 --out bundle --json, and
                          marsnn verify bundle --json, for some state space layers of a refined SmolLM2-135M
benchmarks/hardware.json  marsnn bench hardware
"""

import json
from pathlib import Path

from make_refine import written

from marsnn.bench import hardware

DOCS = Path(__file__).parent
KEPT = DOCS.parent / "benchmarks"


def kept(name: str) -> dict:
    """A kept result."""
    return json.loads((KEPT / f"{name}.json").read_text(encoding="utf-8"))


def blocks() -> str:
    """Layers of a refined model in Lava."""
    found = kept("blocks")
    sites = ", ".join(row["name"] for row in found["rows"][0]["drift"]["layers"])
    lines = [
        f"{found['model']}.",
        "",
        "| layer | mismatches | of spike slots, graded values, sums | spikes +1, -1 | Lava | "
        f"slots that drift: {sites} | output error, rms |",
        "|---" * 7 + "|",
    ]
    for row in found["rows"]:
        seen, drift = row["verification"], row["drift"]
        lines.append(
            f"| {row['layer']} | {seen['mismatches']} | "
            f"{seen['slots']:,}, {seen['values']:,}, {seen['sums']:,} | "
            f"{seen['positive']:,}, {seen['negative']:,} | {seen['seconds']:.0f} s | "
            + ", ".join(f"{each['end_to_end']:.1%}" for each in drift["layers"])
            + f" | {drift['output']['rms_error'] / drift['output']['rms']:.1%} |"
        )
    return "\n".join(lines)


def page(text: str) -> str:
    """docs/lava.md with its tables."""
    text = written(text, "block", blocks())
    return written(text, "figures", hardware.markdown(kept("hardware")))


if __name__ == "__main__":
    path = DOCS / "lava.md"
    path.write_text(page(path.read_text(encoding="utf-8")), encoding="utf-8")
