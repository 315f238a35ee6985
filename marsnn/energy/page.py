"""An energy report as a page: columns that are estimated and columns that are measured, told apart by their
heads, by their unit and by their colour.
"""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

STYLE = """body{font-family:sans-serif;max-width:90em;margin:2em auto;padding:0 1em;color:#333}
table{border-collapse:collapse}th,td{padding:.3em .8em;text-align:right;border-bottom:1px solid #ddd}
th:first-child,td:first-child{text-align:left}th{vertical-align:bottom}
.estimated{background:#eef3fa}.measured{background:#fdf0dd;border-left:3px solid #c47f17}
.total{font-weight:bold}p.reason{background:#f6f6f6;padding:.6em}"""


def page(told: Mapping[str, Any]) -> str:
    """The page of what `EnergyReport.to_dict` returns."""
    tables = list(told["tables"])
    measurement = told.get("measurement")
    meters = measurement["meters"] if measurement else []
    heads = [
        f"<th class=estimated>estimated ({escape(name)})<br>{what}</th>"
        for name in tables
        for what in ("spiking, pJ", "dense, pJ", "ratio")
    ]
    heads += [f"<th class=measured>{escape(meter['label'])}<br>J</th>" for meter in meters]
    rows = [_row(row, tables, [], len(meters)) for row in told["layers"]]
    rows.append(_row(told["total"], tables, meters, len(meters)))
    title = escape(f"{told['name']}: energy per token")
    kinds = "estimated from counted operations, and measured in the columns that say so"
    kinds = kinds if meters else "estimated from counted operations, never measured"
    notes = "".join(f"<li>{escape(note)}</li>" for note in told["notes"])
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title><style>{STYLE}</style>"
        f"<h1>{title}</h1><p>{kinds}; T = {told['steps']}, means over {told['tokens']} tokens.</p>"
        f"<table><tr><th>layer</th>{''.join(heads)}</tr>{''.join(rows)}</table>"
        f"{_how(measurement)}<ul>{notes}</ul></html>\n"
    )


def _row(row: Mapping[str, Any], tables: list[str], meters: list[Mapping[str, Any]], columns: int) -> str:
    """One layer, or the total, which alone is measured."""
    cells = "".join(
        f"<td class=estimated>{_number(row['energy'][name][key])}</td>"
        for name in tables
        for key in ("spiking_pj", "dense_pj", "ratio")
    )
    for i in range(columns):
        cells += f"<td class=measured>{_measured(meters[i]) if meters else ''}</td>"
    kind = " class=total" if row["name"] == "total" else ""
    return f"<tr{kind}><td>{escape(row['name'])}</td>{cells}</tr>"


def _measured(meter: Mapping[str, Any]) -> str:
    if meter["below_resolution"]:
        return f"below the meter's resolution of {meter['resolution_j_per_token']:.3g}"
    net = meter["net_j_per_token"]
    return f"{net['mean']:.4g} &plusmn; {net['half']:.2g}"


def _how(measurement: Mapping[str, Any] | None) -> str:
    """A line for each meter, and for each that was not used."""
    if measurement is None:
        return ""
    if measurement["reason"]:
        return f"<p class=reason>{escape(measurement['reason'])}</p>"
    lines = [
        f"{meter['label']}: {len(meter['repeats'])} repeats, 95 % interval; {meter['gross_w']:.4g} W "
        f"while it ran, {meter['idle_w']['mean']:.4g} W idle before; {meter['method']}; {meter['scope']}"
        for meter in measurement["meters"]
    ]
    lines += [f"not measured by {name}: {why}" for name, why in measurement["missing"].items()]
    return "".join(f"<p class=reason>{escape(line)}</p>" for line in lines)


def _number(value: float | None) -> str:
    return "n/a" if value is None else f"{value:,.4g}"
