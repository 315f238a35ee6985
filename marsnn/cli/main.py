"""marsnn on the command line: what a user types, turned into calls of the package.

Exit codes: 0 done, 1 a check failed, 2 bad input, with one line on standard error that says what to do.
Heavy imports happen inside the verbs, so that `--help` and `verify` never load torch.
"""

from __future__ import annotations

import os
import sys
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from marsnn.cli.ablate import EXAMPLE, ablate
from marsnn.cli.bench import bench
from marsnn.cli.distill import DISTILL, PRETRAIN, distill, pretrain
from marsnn.cli.options import Device, Json, Seed, print_json
from marsnn.cli.refine import EVALUATE, GENERATE, REFINE, evaluate, generate, refine, shape_energy
from marsnn.errors import InputError, MarsnnError

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Ternary multi-step spiking networks: simulate, count the energy, export to Lava bit for bit.",
    epilog="Start with:  marsnn demo",
)

NetworkFile = Annotated[
    Path, typer.Argument(help="a network saved by marsnn (.safetensors)", metavar="NETWORK")
]
Input = Annotated[
    str,
    typer.Option(
        "--input",
        "-i",
        help='"digits", "digits-rows", or a .npy file with x [L, B, D] (tokens, batch, features)',
    ),
]
Samples = Annotated[int, typer.Option(help="use only the first so many samples of the batch (0: all)", min=0)]


class Target(StrEnum):
    """What a network is written for."""

    lava = "lava"
    netx = "netx"
    nir = "nir"


class Mode(StrEnum):
    """How trains travel."""

    window = "window"
    counts = "count"
    stock_lif = "stock-lif"


class Part(StrEnum):
    """Of a refined model's layer."""

    auto = "auto"
    block = "block"
    ffn = "ffn"


class Simulator(StrEnum):
    """Who repeats an export."""

    lava = "lava"
    integer = "integer"


@app.command(epilog="Example:  marsnn demo --out marsnn-demo")
def demo(
    out: Annotated[Path, typer.Option(help="folder for the network, the picture and the bundle")] = Path(
        "marsnn-demo"
    ),
    seeds: Annotated[int, typer.Option(help="trainings per model after tuning", min=1)] = 5,
    epochs: Annotated[int, typer.Option(help="passes over the training data", min=1)] = 40,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Train on digits, draw, count energy, export, verify."""
    from marsnn.bench.demo import demonstrate

    result = demonstrate(out, seeds=range(seed, seed + seeds), epochs=epochs, quiet=as_json)
    if as_json:
        print_json(result)
    if not result["verification"]["ok"]:
        raise typer.Exit(1)


@app.command(
    epilog="Example:  marsnn simulate marsnn-demo/atmn.safetensors -i digits --samples 4 --raster raster.png"
)
def simulate(
    network: NetworkFile,
    source: Input,
    samples: Samples = 0,
    save: Annotated[Path | None, typer.Option(help="write the Recording to this .npz")] = None,
    raster: Annotated[
        Path | None, typer.Option(help="draw the spikes of the first sample to this .png")
    ] = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Run a network and say how often each layer fires."""
    from marsnn.cli.inputs import load_input, seeded
    from marsnn.simulator import simulate as run

    seeded(seed)
    net, x = load_input(network, source, samples)
    recording = run(net, x, progress=True)
    L, B = x.shape[:2]
    result: dict[str, Any] = {"network": str(network), "L": L, "B": B, "T": net.steps, "layers": {}}
    for name, rate in (recording.rates() if recording.spikes else {}).items():
        spikes = recording.spikes[name]
        positive, negative = int((spikes > 0).sum()), int((spikes < 0).sum())
        result["layers"][name] = {"rate": rate, "positive": positive, "negative": negative}
    if save:
        result["saved"] = str(recording.save(save))
    if raster:
        from marsnn.plots import raster as draw
        from marsnn.plots.files import save_figure

        result["raster"] = str(save_figure(draw(recording), raster))
    if as_json:
        return print_json(result)
    print(f"{network}: {L} tokens x {B} samples, T = {net.steps}")
    for name, row in result["layers"].items():
        print(
            f"  {name:<12} {row['rate']:.3f} spikes per neuron-step  (+{row['positive']}, -{row['negative']})"
        )
    for key in ("saved", "raster"):
        if key in result:
            print(f"{key}: {result[key]}")


@app.command(
    epilog="Example:  marsnn energy marsnn-demo/atmn.safetensors -i digits, or for a language model of any "
    "size  marsnn energy --shape llama-7b --ssm all --keep 0.4 --steps 6, or with this machine's meters "
    "marsnn energy marsnn-demo/atmn.safetensors -i digits --measure"
)
def energy(
    network: Annotated[
        Path | None,
        typer.Argument(
            help="a network saved by marsnn (.safetensors)", metavar="[NETWORK]", show_default=False
        ),
    ] = None,
    source: Annotated[
        str | None,
        typer.Option("--input", "-i", help='"digits", "digits-rows", or a .npy file with x [L, B, D]'),
    ] = None,
    samples: Samples = 0,
    table: Annotated[
        list[str] | None, typer.Option(help="a further table: a shipped name or a .toml file; repeatable")
    ] = None,
    shape: Annotated[
        str | None,
        typer.Option(help="instead: a language model's config.json or folder, llama-7b or llama-13b"),
    ] = None,
    ssm: Annotated[str, typer.Option(help="of a shape: attentions that become SSMs: 8, 50%, all")] = "all",
    keep: Annotated[float, typer.Option(help="of a shape: share of activations kept")] = 0.4,
    steps: Annotated[int, typer.Option(help="of a shape: T of ATMN", min=1)] = 6,
    rate: Annotated[
        float | None, typer.Option(help="of a shape: spikes per neuron and step; without it as measured")
    ] = None,
    contexts: Annotated[str, typer.Option(help="of a shape: contexts, by commas")] = "256,1024,4096",
    measure: Annotated[
        bool,
        typer.Option("--measure", help="also run it, and show joules by this machine's meters (NVML, RAPL)"),
    ] = False,
    device: Annotated[
        Device | None, typer.Option(help="of --measure: cpu or cuda; without it the GPU where there is one")
    ] = None,
    repeats: Annotated[int, typer.Option(help="of --measure: windows of calls", min=2)] = 5,
    seconds: Annotated[float, typer.Option(help="of --measure: length of a window")] = 2.0,
    save: Annotated[
        Path | None, typer.Option(help="also write the report here: .json, .txt or .html")
    ] = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Count operations, price them by named tables; measure them where there is a meter."""
    if shape is not None:
        if network is not None or source is not None:
            raise InputError("--shape counts from a configuration alone; leave NETWORK and --input out")
        if measure or save:
            raise InputError("--measure and --save need a NETWORK; a --shape alone can't be run")
        return shape_energy(shape, ssm, keep, steps, rate, contexts, as_json)
    if network is None or source is None:
        raise InputError("say a NETWORK and its --input, or --shape for a language model's configuration")
    from marsnn.cli.inputs import load_input, seeded
    from marsnn.energy import EnergyReport, count, measure_network
    from marsnn.energy.report import DEFAULT_TABLES
    from marsnn.files import probe

    if save:
        probe(save)
    seeded(seed)
    net, x = load_input(network, source, samples)
    tables = tuple(dict.fromkeys([*DEFAULT_TABLES, *(table or [])]))
    counts = count(net, x)
    where, measured = device.value if device else None, None
    if measure:
        measured = measure_network(net, x, where, repeats=repeats, seconds=seconds, progress=True)
    report = EnergyReport(counts, tables=tables, name=network.stem, measured=measured)
    if save:
        report.save(save)
    print(report.to_json() if as_json else report.text())


@app.command(
    epilog="Example:  marsnn export marsnn-demo/atmn.safetensors -i digits --samples 100 --out my-bundle, or "
    "a layer of a refined model  marsnn export refined --layer 15 -i topics --samples 64 --out bundle"
)
def export(
    network: Annotated[
        Path,
        typer.Argument(help="a network saved by marsnn, or a refined model's folder", metavar="NETWORK"),
    ],
    source: Annotated[
        str,
        typer.Option(
            "--input",
            "-i",
            help='"digits", "digits-rows" or a .npy file with x [L, B, D]; of a model: topics or a text file',
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            "-o",
            help="the bundle's folder, or the file of netx, nir and stock-lif; an older one is replaced",
        ),
    ],
    samples: Samples = 0,
    layer: Annotated[int | None, typer.Option(help="of a refined model: the layer that is exported")] = None,
    part: Annotated[
        Part,
        typer.Option(
            help="of that layer: block, all of a state space layer; ffn, its spiking feed-forward net; auto, "
            "the block where it is one"
        ),
    ] = Part.auto,
    target: Annotated[
        Target,
        typer.Option(
            help="lava: a bundle; netx: LIF networks as a file of lava-dl; nir: a file for other frameworks"
        ),
    ] = Target.lava,
    mode: Annotated[
        Mode,
        typer.Option(
            help="of lava. window: the faithful train of T steps a token; count: one graded event a token; "
            "stock-lif: the counts from stock Lava's LIFs, as a netx file, for small networks"
        ),
    ] = Mode.window,
    allow: Annotated[
        list[str] | None, typer.Option(help="of nir: a change of meaning that is accepted, as soft-reset")
    ] = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Write a network that Lava's simulator runs, or another framework reads."""
    from marsnn.cli.inputs import load_input, seeded
    from marsnn.hardware import Bundle, NetxExport, price_of
    from marsnn.hardware.exporter import export as write
    from marsnn.hardware.placement import line_of

    seeded(seed)
    if layer is not None:
        from marsnn.cli.refine import layer_input

        net, x = layer_input(network, layer, source, samples, part.value)
    else:
        net, x = load_input(network, source, samples)
    if mode is Mode.stock_lif and target is Target.lava and not as_json:
        from marsnn.hardware.stock_graph import extract_stock, stock_sizes

        sizes = stock_sizes(extract_stock(net, tuple(x.shape[2:])))
        neurons, synapses = sum(row[1] for row in sizes), sum(row[2] for row in sizes)
        print(f"takes {neurons:,} LIFs and {synapses:,} synapses of stock Lava, zeros included", flush=True)
    written = write(net, x, out, target=target.value, mode=mode.value, allow=allow or ())
    if isinstance(written, Path):
        return print_json({"file": str(written)}) if as_json else print(f"file: {written}")
    if isinstance(written, Bundle):
        kind, placed = "bundle", written.report("placement")
    else:
        kind, placed = "file", written.placement(effort=0).to_dict()
    room = {key: placed[key] for key in ("profile", "cores_used", "fits", "refusals")}
    told = "\n".join([f"placement: {line_of(placed)}", *placed["refusals"]])
    if isinstance(written, NetxExport):
        if as_json:
            layers = [asdict(report) for report in written.reports]
            result = {"file": str(written.path), "tokens": len(written.inputs), "layers": layers}
            return print_json(result | {"placement": room})
        print(f"file: {written.path} ({len(written.inputs)} golden tokens, T = {net.steps})")
        return print(f"{written.text()}\n{told}\nnext:  marsnn verify {written.path}")
    drift = written.report("drift") if isinstance(written, Bundle) else written.header["drift"]
    price = price_of(written)
    if as_json:
        result = {
            kind: str(written.path),
            "tokens": len(written.inputs),
            "price": price.to_dict(),
            "placement": room,
            "drift": drift,
        }
        return print_json(result)
    print(f"{kind}: {written.path} ({len(written.inputs)} golden tokens, T = {net.steps})")
    print(price.text())
    print(told)
    print("drift of the integers from the float network (not parity), share of spike slots that differ:")
    for row in drift["layers"]:
        alone, all_before = row["teacher_forced"], row["end_to_end"]
        print(
            f"  {row['name']:<12} {alone:.4%} by its own rounding, {all_before:.4%} with the layers before it"
        )
    print(f"next:  marsnn verify {written.path}")


@app.command(epilog="Example:  marsnn verify marsnn-demo/bundle")
def verify(
    bundle: Annotated[Path, typer.Argument(help="the bundle's folder, or a netx file", metavar="BUNDLE")],
    simulator: Annotated[
        Simulator, typer.Option(help="lava: Lava's CPU simulator; integer: only repeat the integer model")
    ] = Simulator.lava,
    seed: Annotated[int, typer.Option(help="accepted for uniformity: nothing here is random")] = 0,
    as_json: Json = False,
) -> None:
    """Compare every spike of a bundle, or of a netx file, with Lava's."""
    from marsnn.hardware import lava, verify_netx

    if bundle.is_file():
        verification = verify_netx(bundle, simulator=simulator.value)
    else:
        verification = lava.verify(bundle, simulator.value)
    if as_json:
        print_json(verification.to_dict())
    else:
        print(verification.text())
    if not verification.ok:
        raise typer.Exit(1)


app.add_typer(bench, name="bench")
app.command(epilog=f"Example:  {EXAMPLE}")(ablate)
for verb, example in (
    (refine, REFINE),
    (evaluate, EVALUATE),
    (generate, GENERATE),
    (pretrain, PRETRAIN),
    (distill, DISTILL),
):
    app.command(epilog=f"Example:  {example}")(verb)


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="print the version and exit")] = False,
) -> None:
    """Ternary multi-step spiking networks: simulate, count the energy, export to Lava bit for bit."""
    if version:
        import marsnn

        print(f"marsnn {marsnn.__version__}")
    elif context.invoked_subcommand is None:
        print(context.get_help())


def run(arguments: list[str] | None = None) -> NoReturn:
    """Entry point: every error becomes one line and exit code 2; MARSNN_DEBUG=1 shows the traceback."""
    try:
        status = app(args=arguments, standalone_mode=False)
    except (MarsnnError, OSError) as error:
        fail(str(error))
    except KeyboardInterrupt:
        fail("interrupted; what was written before is whole", 130)
    except Exception as error:
        if os.environ.get("MARSNN_DEBUG"):
            raise
        # typer brings its own click or depends on it: its usage errors are known by their method.
        if hasattr(error, "format_message"):
            fail(f"{error.format_message()} (see marsnn --help)")
        fail(f"unexpected {type(error).__name__}: {error} (MARSNN_DEBUG=1 shows where)")
    sys.exit(status if isinstance(status, int) else 0)


def fail(message: str, code: int = 2) -> NoReturn:
    """Say it in one line on standard error and leave."""
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(code)
