"""A NIR file run by others: the equations of NIR themselves in numpy, snnTorch, SpikingJelly and norse.

    outputs = READERS[name](path, x)        x [T, B, *D] -> node's name -> what it gives, [T, B, *]

Each starts at rest. None of them uses marsnn.
"""

import contextlib
import io
import logging
import warnings

import nir
import numpy as np
import pytest
import torch

DT = 1e-4

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # norse compiles by torch.jit, which torch deprecates
    norse = pytest.importorskip("norse.torch.utils.import_nir", reason="norse is one of the readers")
snn_nir = pytest.importorskip("snntorch.import_nir", reason='needs pip install "marsnn[snn]"')
jelly_nir = pytest.importorskip("spikingjelly.activation_based.nir_exchange", reason="as above")
snn_export_nir = pytest.importorskip("snntorch.export_nir", reason="as above")

FIRES_AT = {"NIR": ">", "snnTorch": ">", "SpikingJelly": ">=", "norse": ">"}
"""What each reader does at its threshold."""


def snn_export(module, sample):
    """What snnTorch writes of a module."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it still calls nirtorch.extract_nir_graph
        return snn_export_nir.export_to_nir(module, sample, ignore_dims=[0])


# ---- NIR's own equations, forward Euler, strict threshold ----------------------------------------------


def by_the_equations(path, x, dt=DT, late=1):
    """The graph, node by node in topological order, in the dtype of x."""
    graph = nir.read(path)
    state, outputs = {}, {name: [] for name in graph.nodes}
    for frame in x:
        for name, value in instant(graph, frame, state, dt, late).items():
            assert value.dtype == x.dtype, name
            outputs[name].append(value)
    return {name: np.stack(values) for name, values in outputs.items()}


def instant(graph, frame, state, dt, late):
    """What every node gives at one step. Where a node leads back to a neuron, what the neuron gave `late`
    steps before arrives there: Euler's method takes the last output that is known."""
    before = {name: [a for a, b in graph.edges if b == name] for name in graph.nodes}
    given = state.setdefault("given", [])
    known = given[-late] if len(given) >= late else {}
    now = {}

    def source(each, name):
        if (name, each) not in graph.edges or not hasattr(graph.nodes[each], "r"):
            return now.get(each)
        return known.get(each, np.zeros((len(frame), *graph.nodes[each].r.shape), frame.dtype))

    while len(now) < len(graph.nodes):
        size = len(now)
        for name, node in graph.nodes.items():
            arrived = [source(each, name) for each in before[name]]
            if name not in now and not any(value is None for value in arrived):
                total = sum(arrived, start=np.zeros((), frame.dtype))
                now[name] = frame if isinstance(node, nir.Input) else step(node, name, total, state, dt, late)
        assert len(now) > size, "a loop without a neuron"
    given.append(now)
    return now


def step(node, name, x, state, dt, late=1):
    def own(value):
        return np.asarray(value).astype(x.dtype)

    def euler(
        v, tau, leak, drive
    ):  # tau dv/dt = (leak - v) + drive, as (1 - dt/tau) v + dt/tau (leak + drive)
        return own(1 - dt / tau) * v + own(dt / tau) * leak + drive

    kind = type(node).__name__
    if kind == "NIRGraph":
        within = instant(node, x, state.setdefault(name, {}), dt, late)
        (end,) = (each for each, part in node.nodes.items() if isinstance(part, nir.Output))
        return within[end]
    if kind == "Output":
        return x
    if kind in ("Affine", "Linear"):
        y = x @ own(node.weight).T
        return y + own(node.bias) if kind == "Affine" else y
    if kind in ("Conv1d", "Conv2d"):
        conv = torch.nn.functional.conv1d if kind == "Conv1d" else torch.nn.functional.conv2d
        tensors = [torch.as_tensor(own(value)) for value in (x, node.weight, node.bias)]
        sides = [np.asarray(v).reshape(-1).tolist() for v in (node.stride, node.padding, node.dilation)]
        return conv(*tensors, *sides, int(node.groups)).numpy()
    if kind in ("AvgPool2d", "SumPool2d"):
        sides = [np.asarray(v).tolist() for v in (node.kernel_size, node.stride, node.padding)]
        mean = torch.nn.functional.avg_pool2d(torch.as_tensor(x), *sides)
        return (mean * (int(np.prod(sides[0])) if kind == "SumPool2d" else 1)).numpy()
    if kind == "Flatten":
        dims = int(node.start_dim), int(node.end_dim)
        return torch.flatten(torch.as_tensor(x), *(d + 1 if d >= 0 else d for d in dims)).numpy()
    if kind == "Scale":
        return x * own(node.scale)
    if kind == "Threshold":
        return own(x > own(node.threshold))
    old = state.get(name, (np.zeros_like(x), np.zeros_like(x)))
    v, current = old
    if kind == "CubaLIF":
        current = euler(current, node.tau_syn, 0, own(dt / node.tau_syn * node.w_in) * x)
        drive = own(dt / node.tau_mem * node.r) * current
        v = euler(v, node.tau_mem, own(node.v_leak), drive)
    elif kind in ("LIF", "LI"):
        v = euler(v, node.tau, own(node.v_leak), own(dt / node.tau * node.r) * x)
    else:
        assert kind in ("IF", "I"), kind
        v = v + own(dt * node.r) * x
    if kind in ("LI", "I"):
        state[name] = v, current
        return v
    z = v > own(node.v_threshold)
    state[name] = np.where(z, own(node.v_reset), v), current
    return own(z)


# ---- other libraries -------------------------------------------------------------------------------------


def listen(modules, names):
    """Keep what each named module gives."""
    outputs = {name: [] for name in names}
    for name in names:
        module = modules[name.replace(".", "_")]
        module.register_forward_hook(
            lambda _m, _i, out, name=name: outputs[name].append(out[0] if isinstance(out, tuple) else out)
        )
    return outputs


def stacked(outputs):
    return {name: torch.stack(values).detach().numpy() for name, values in outputs.items()}


def inner(path):
    graph = nir.read(path)
    return graph, [n for n, node in graph.nodes.items() if not isinstance(node, nir.Input | nir.Output)]


def by_snntorch(path, x):
    graph, names = inner(path)
    with contextlib.redirect_stdout(io.StringIO()):  # it prints as it goes
        model = snn_nir.import_from_nir(graph)
    outputs = listen(dict(model.named_children()), names)
    state = None
    for frame in torch.as_tensor(x):
        _, state = model(frame, state)
    return stacked(outputs)


def by_spikingjelly(path, x):
    graph, names = inner(path)
    dtype = torch.as_tensor(x).dtype
    model = jelly_nir.import_from_nir(graph, dtype=dtype)
    outputs = listen(dict(model.named_children()), names)
    state = None
    for frame in torch.as_tensor(x):
        _, state = model(frame, state)
    return stacked(outputs)


def by_norse(path, x, dt=DT, names=None):
    graph, everyone = inner(path)
    names = names or everyone
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # it still calls nirtorch.load
        logging.disable(logging.WARNING)  # it warns of every r that it doesn't honour
        try:
            model = norse.from_nir(graph, dt=dt)
        finally:
            logging.disable(logging.NOTSET)
    outputs = listen({name.rpartition(".")[2]: m for name, m in model.named_modules()}, names)
    state = None
    for frame in torch.as_tensor(x):
        _, state = model(frame, state)
    return stacked(outputs)


READERS = {
    "NIR": by_the_equations,
    "snnTorch": by_snntorch,
    "SpikingJelly": by_spikingjelly,
    "norse": by_norse,
}
