"""Reference: simulate() against the one differentiable call. Property: 60 + 40 tokens are 100, bit for bit.

Round trip: a Recording through its file, whole, truncated, pickled and foreign.
"""

import io
import json
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from marsnn import ATMN, LIF, LeakyIntegrator, Network, Recording, simulate
from marsnn.errors import FileError, InputError, NonFiniteError, ShapeError
from marsnn.record import EVENT, events_of

L, T, B, D = 7, 3, 4, 6
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def lif_net():
    return [
        nn.Linear(D, 8),
        LIF(8, steps=T, threshold=0.3, carry="sequence"),
        nn.Linear(8, 8),
        LIF(8, steps=T, beta=0.9, threshold=0.2, reset="zero", carry="sequence"),
        nn.Linear(8, 2),
        LeakyIntegrator(2, steps=T, carry="sequence"),
    ]


def atmn_net():
    return [
        nn.Linear(D, 8),
        ATMN(8, steps=T, threshold=0.4),
        nn.Linear(8, 8),
        ATMN(8, steps=T, threshold=0.2, tau=1.0),
        nn.Linear(8, 2),
    ]


def mixed_net():
    return [
        *lif_net()[:2],
        nn.Linear(8, 8),
        ATMN(8, steps=T, threshold=0.2),
        nn.Dropout(0.5),
        nn.Linear(8, 2),
    ]


NETS = pytest.mark.parametrize("layers", [lif_net, atmn_net, mixed_net])


def network_of(layers, dtype=torch.float64):
    torch.manual_seed(1)
    return Network(layers()).to(dtype)


def tokens(count=L, batch=B, dtype=torch.float64):
    return torch.randn(count, batch, D, dtype=torch.float64).to(dtype)


def equal(first, second):
    return first.dtype == second.dtype and np.array_equal(first, second)


def joined(first, second):
    """Two recordings, one after the other."""
    return Recording(
        output=np.concatenate([first.output, second.output]),
        spikes={name: np.concatenate([first.spikes[name], second.spikes[name]]) for name in first.spikes},
        membrane={
            name: np.concatenate([first.membrane[name], second.membrane[name]]) for name in first.membrane
        },
        state=second.state,
    )


def assert_same(first, second):
    assert equal(first.output, second.output)
    for what in ("spikes", "membrane"):
        ours, theirs = getattr(first, what), getattr(second, what)
        assert ours.keys() == theirs.keys()
        assert all(equal(ours[name], theirs[name]) for name in ours), what


def state_of(recording):
    """The state as plain arrays, whether it comes from a run or from a file."""
    return {
        name: {key: t.double().numpy() for key, t in (s if isinstance(s, dict) else s._asdict()).items()}
        for name, s in recording.state.items()
    }


def assert_same_state(first, second):
    first, second = state_of(first), state_of(second)
    assert first.keys() == second.keys()
    for name in first:
        assert first[name].keys() == second[name].keys()
        assert all(np.array_equal(first[name][key], second[name][key]) for key in first[name])


# ---- going on where it stopped ----------------------------------------------------------------------


@NETS
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("through_a_file", [False, True])
def test_60_and_40_tokens_are_100(layers, dtype, through_a_file, tmp_path):
    network, x = network_of(layers, dtype), tokens(100, dtype=dtype)
    whole = simulate(network, x)
    first = simulate(network, x[:60])
    if through_a_file:
        first = Recording.load(first.save(tmp_path / "first.npz"))
    second = simulate(network, x[60:], state=first.state)
    assert_same(joined(first, second), whole)
    assert_same_state(second, whole)
    carried = {name for name, neuron in network.neurons.items() if neuron.carry == "sequence"}
    assert set(whole.state) == carried
    if carried:
        forgot = simulate(network, x[60:])
        assert any(not equal(forgot.membrane[name], second.membrane[name]) for name in carried)


def test_going_on_does_not_change_the_state_it_started_from():
    network, x = network_of(lif_net), tokens()
    first = simulate(network, x)
    before = state_of(first)
    again = [simulate(network, x, state=first.state) for _ in range(2)]
    assert_same(*again)
    assert all(np.array_equal(before["lif1"][key], value) for key, value in state_of(first)["lif1"].items())


@NETS
def test_simulate_agrees_with_the_differentiable_call(layers):
    network, x = network_of(layers).eval(), tokens()
    recording = simulate(network, x)
    np.testing.assert_allclose(recording.output, network(x).detach().numpy(), rtol=0, atol=1e-9)
    network.unrolled = True
    np.testing.assert_allclose(simulate(network, x).output, recording.output, rtol=0, atol=1e-9)


@NETS
def test_spikes_and_membranes_are_those_of_the_neuron(layers):
    """The first neuron, fed by hand: T steps a token, the state going on where it is carried."""
    network, x = network_of(layers).eval(), tokens()
    recording = simulate(network, x)
    linear, neuron = list(network.layers.values())[:2]
    name, state = network.names[1], None
    with torch.no_grad():
        for token in range(L):
            currents = neuron.present(linear(x[token]))
            spikes, membrane, after = neuron.trace(currents, state)
            state = after if neuron.carry == "sequence" else None
            np.testing.assert_array_equal(recording.spikes[name][token], spikes.numpy())
            np.testing.assert_allclose(recording.membrane[name][token], membrane.numpy(), rtol=0, atol=1e-12)


@NETS
def test_samples_share_no_state(layers):
    """Batched and alone; a batched matmul may add in another order, so the output is equal to rounding."""
    network, x = network_of(layers), tokens()
    together = simulate(network, x)
    for sample in range(B):
        alone = simulate(network, x[:, sample : sample + 1])
        np.testing.assert_allclose(alone.output[:, 0], together.output[:, sample], rtol=0, atol=1e-12)
        for name, spikes in together.spikes.items():
            assert equal(alone.spikes[name][:, :, 0], spikes[:, :, sample])


# ---- what is recorded -------------------------------------------------------------------------------


@NETS
@pytest.mark.parametrize("dtype", DTYPES)
def test_shapes_and_dtypes(layers, dtype):
    network = network_of(layers, dtype)
    recording = simulate(network, tokens(dtype=dtype))
    kept = np.float32 if dtype == torch.bfloat16 else torch.empty(0, dtype=dtype).numpy().dtype
    assert recording.output.shape == (L, B, 2)
    assert recording.output.dtype == kept
    assert recording.names == tuple(network.neurons)
    assert recording.spikes.keys() == {name for name, neuron in network.neurons.items() if neuron.levels}
    for name, array in recording.spikes.items():
        assert (array.shape, array.dtype) == ((L, T, B, 8), np.int8)
        assert set(np.unique(array)) == set(network[name].levels)
    for name, array in recording.membrane.items():
        assert (array.shape, array.dtype) == ((L, T, B, network[name].features), kept)


@pytest.mark.parametrize("record", [(), ("spikes",), ("membrane",), ["membrane", "spikes"], "spikes"])
def test_record_keeps_what_is_asked_for(record):
    network, x = network_of(atmn_net), tokens()
    everything, some = simulate(network, x), simulate(network, x, record=record)
    assert equal(some.output, everything.output)
    for what in ("spikes", "membrane"):
        expected = getattr(everything, what) if what in record else {}
        assert getattr(some, what).keys() == expected.keys()
        assert all(equal(getattr(some, what)[name], array) for name, array in expected.items())


def test_unknown_record():
    with pytest.raises(InputError, match=r"can't record \['currents'\]; record may hold spikes, membrane"):
        simulate(network_of(atmn_net), tokens(), record=("spikes", "currents"))


@NETS
def test_events_are_the_spikes_in_time_order(layers):
    recording = simulate(network_of(layers), tokens())
    events = recording.events()
    assert events.keys() == recording.spikes.keys()
    for name, spikes in recording.spikes.items():
        listed = events[name]
        assert listed.dtype == EVENT
        assert len(listed) == np.count_nonzero(spikes) > 0
        rebuilt = np.zeros_like(spikes)
        for event in listed:
            rebuilt[event["token"], event["step"], event["sample"], event["neuron"]] += event["sign"]
        assert equal(rebuilt, spikes)
        order = [tuple(event)[:4] for event in listed.tolist()]
        assert order == sorted(order)


def test_events_golden():
    """Two tokens, two steps, one sample, neurons on a 1 x 3 grid: their flat index counts."""
    spikes = np.zeros((2, 2, 1, 1, 3), dtype=np.int8)
    spikes[1, 0, 0, 0, 2] = -1
    spikes[0, 1, 0, 0, 1] = 1
    spikes[1, 0, 0, 0, 0] = 1
    assert events_of(spikes).tolist() == [(0, 1, 0, 1, 1), (1, 0, 0, 0, 1), (1, 0, 0, 2, -1)]
    recording = Recording(output=np.zeros((2, 1, 3)), spikes={"a": spikes})
    assert recording.rates() == {"a": 3 / 12}  # either sign counts
    assert recording.events()["a"].tolist() == events_of(spikes).tolist()


def test_a_recording_without_spikes_says_so():
    for recording in (
        Recording(output=np.zeros((1, 1, 1))),
        simulate(network_of(atmn_net), tokens(), record="membrane"),
        simulate(Network([nn.Linear(D, 2)]).double(), tokens()),
    ):
        for ask in (recording.rates, recording.events):
            with pytest.raises(InputError, match="holds no spikes"):
                ask()


# ---- what it leaves as it was -----------------------------------------------------------------------


def test_training_modes_are_restored_and_nothing_is_trained():
    network, x = network_of(mixed_net), tokens()
    network.train()
    network["atmn1"].eval()
    modes = {name: module.training for name, module in network.named_modules()}
    assert len(set(modes.values())) == 2
    before = {name: p.clone() for name, p in network.named_parameters()}
    first, second = simulate(network, x), simulate(network, x.requires_grad_())
    assert {name: module.training for name, module in network.named_modules()} == modes
    assert_same(first, second)  # dropout was off
    assert not any(field.requires_grad for state in first.state.values() for field in state)
    for name, p in network.named_parameters():
        assert p.grad is None
        assert torch.equal(p, before[name])
    assert torch.is_grad_enabled()


def test_training_mode_is_restored_after_an_error():
    network = network_of(mixed_net).train()
    with pytest.raises(ShapeError):
        simulate(network, torch.zeros(L, B, D + 1, dtype=torch.float64))
    assert all(module.training for module in network.modules())


class Screen(io.StringIO):
    def __init__(self, terminal):
        super().__init__()
        self.terminal = terminal

    def isatty(self):
        return self.terminal


@pytest.mark.parametrize(
    ("terminal", "progress", "drawn"), [(True, True, True), (True, False, False), (False, True, False)]
)
def test_progress_bar_only_on_a_terminal(terminal, progress, drawn, monkeypatch, capsys):
    for variable in ("TERM", "NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(variable, raising=False)
    screen = Screen(terminal)
    monkeypatch.setattr("sys.stderr", screen)
    simulate(network_of(atmn_net), tokens(), progress=progress)
    assert ("simulating" in screen.getvalue()) == drawn
    assert drawn or screen.getvalue() == ""
    assert capsys.readouterr().out == ""


# ---- what is refused --------------------------------------------------------------------------------


def test_inputs_that_are_refused():
    network, x = network_of(lif_net), tokens()
    with pytest.raises(InputError, match=r"simulate\(\) runs a marsnn Network, got Linear"):
        simulate(network["linear1"], x)
    with pytest.raises(InputError, match=r"x must be a tensor.*torch\.as_tensor"):
        simulate(network, x.numpy())
    with pytest.raises(ShapeError, match=r"\[L, B, D\]"):
        simulate(network, x[0])
    with pytest.raises(ShapeError, match="L and B must be at least 1"):
        simulate(network, x[:0])
    with pytest.raises(InputError, match="convert one"):
        simulate(network, x.float())
    with pytest.raises(InputError, match=r"a layer 'lif9' that this network lacks"):
        simulate(network, x, state={"lif9": simulate(network, x).state["lif1"]})
    with pytest.raises(ShapeError, match=r"lif1: .*expected a state \[2, 8\], got \[4, 8\]"):
        simulate(network, x[:, :2], state=simulate(network, x).state)
    x[2, 1, 3] = float("nan")
    with pytest.raises(NonFiniteError, match=r"x holds 1 NaN .*\(2, 1, 3\)"):
        simulate(network, x)
    with torch.no_grad():
        network["linear2"].bias[0] = float("inf")
    with pytest.raises(NonFiniteError, match=r"linear2\.bias"):
        simulate(network, tokens())


# ---- files ------------------------------------------------------------------------------------------


@NETS
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("record", [("spikes", "membrane"), ()])
def test_recording_round_trip(layers, dtype, record, tmp_path):
    recording = simulate(network_of(layers, dtype), tokens(dtype=dtype), record=record)
    path = recording.save(tmp_path / "deep" / "run")
    assert path == tmp_path / "deep" / "run"
    again = Recording.load(path)
    assert_same(again, recording)
    assert_same_state(again, recording)
    assert list(again.spikes) == list(recording.spikes)
    assert again.names == recording.names
    with np.load(path, allow_pickle=False) as plain:  # numpy reads all of it without pickle
        assert {plain[name].dtype.kind for name in plain.files} <= {"f", "i", "u"}
    # once more: what was loaded can be saved
    twice = Recording.load(again.save(tmp_path / "again.npz"))
    assert_same(twice, recording)
    assert_same_state(twice, recording)
    assert (tmp_path / "again.npz").read_bytes() == path.read_bytes()


@pytest.fixture
def saved(tmp_path):
    return simulate(network_of(lif_net), tokens()).save(tmp_path / "run.npz")


def test_a_truncated_file(saved):
    whole = saved.read_bytes()
    for length in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        saved.write_bytes(whole[:length])
        with pytest.raises(FileError, match=r"run\.npz: not a readable"):
            Recording.load(saved)


def test_a_damaged_file(saved):
    whole = bytearray(saved.read_bytes())
    middle = len(whole) // 2
    whole[middle : middle + 64] = bytes(64)
    saved.write_bytes(whole)
    with pytest.raises(FileError, match=r"run\.npz: not a readable"):
        Recording.load(saved)


class Bomb:
    """Unpickling it would be noticed."""

    def __reduce__(self):
        return (exec, ("raise SystemExit('executed')",))


def arrays_of(path):
    with np.load(path) as file:
        return {name: file[name] for name in file.files}


def test_a_pickled_array_is_refused_unopened(saved, tmp_path):
    arrays = arrays_of(saved)
    arrays["output"] = np.array([Bomb()], dtype=object)
    np.savez(tmp_path / "bomb.npz", **arrays)
    with pytest.raises(FileError, match="not a readable"):
        Recording.load(tmp_path / "bomb.npz")
    (tmp_path / "pickle.npz").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(FileError, match="not a readable"):
        Recording.load(tmp_path / "pickle.npz")
    np.save(tmp_path / "bomb.npy", np.array([Bomb()], dtype=object))
    with pytest.raises(FileError, match="not a readable"):
        Recording.load(tmp_path / "bomb.npy")


def header(**fields):
    return np.frombuffer(json.dumps(fields).encode(), dtype=np.uint8)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"header": None}, "not a Recording"),
        ({"output": None}, "not a Recording"),
        ({"header": header(format="marsnn.recording/9")}, "recording/9"),
        ({"header": header(layers=[])}, "not a Recording"),
        ({"header": np.frombuffer(b"[1]", dtype=np.uint8)}, "not a Recording"),
        ({"header": np.frombuffer(b"\xff{", dtype=np.uint8)}, "not a Recording"),
        ({"odd": np.zeros(1)}, "not a Recording"),
        ({"rates/lif1": np.zeros(1)}, "not a Recording"),
        ({"__dict__/output": np.zeros(1)}, "not a Recording"),
        ({"state/lif1": np.zeros(1)}, "not a Recording"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_a_foreign_npz(saved, changes, told):
    arrays = {name: array for name, array in {**arrays_of(saved), **changes}.items() if array is not None}
    np.savez(saved, **arrays)
    with pytest.raises(FileError, match=told) as caught:
        Recording.load(saved)
    assert "run.npz" in str(caught.value)


def test_npz_without_anything_of_ours(tmp_path):
    np.savez(tmp_path / "other.npz", weights=np.zeros(3))
    np.save(tmp_path / "plain.npy", np.zeros(3))
    for name in ("other.npz", "plain.npy"):
        with pytest.raises(FileError):
            Recording.load(tmp_path / name)
    with pytest.raises(FileError, match="no such file"):
        Recording.load(tmp_path / "missing.npz")
    with pytest.raises(FileError):
        Recording.load(tmp_path)  # a folder


def test_states_of_another_network_are_refused():
    lif = Network([torch.nn.Linear(3, 4), LIF(4, carry="sequence")])
    x = torch.randn(2, 1, 3)
    state = simulate(lif, x).state
    with pytest.raises(InputError, match=r"must be the \.state of a Recording"):
        simulate(lif, x, state=simulate(lif, x))
    with pytest.raises(InputError, match="a layer 'lif1' that this network lacks"):
        simulate(Network([torch.nn.Linear(3, 4), ATMN(4)]), x, state=state)
    with pytest.raises(InputError, match="lif1: the state holds"):
        simulate(Network({"linear1": torch.nn.Linear(3, 4), "lif1": ATMN(4)}), x, state=state)
    with pytest.raises(InputError, match="carry='token'"):
        simulate(Network([torch.nn.Linear(3, 4), LIF(4)]), x, state=state)
    wide = simulate(lif.double(), x.double(), state=state)  # a state follows the dtype of the run
    assert wide.state["lif1"].v.dtype == torch.float64
