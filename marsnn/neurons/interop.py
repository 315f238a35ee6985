"""snntorch and spikingjelly: their neurons in our Networks, ours in theirs.

    theirs in ours    Network([nn.Linear(8, 16), LIF(16), nn.Linear(16, 4), snntorch.Leaky(beta=0.9)])
                      adopt(spikingjelly.activation_based.neuron.LIFNode(), steps=4)
    ours in theirs    as_spikingjelly(LIF(16))    a MemoryModule: reset_net, set_step_mode, detach_net
                      as_snntorch(LIF(16))        spk, mem = lif(x, mem), or hidden, with utils.reset
    surrogates        every neuron of ours takes theirs: LIF(16, surrogate=snntorch.surrogate.atan())

An adopted neuron is one of ours in every respect but the equation: `simulate` records it, `energy.count`
books its updates, an ablation swaps it, `train` trains it. What differs between the libraries where their
models look alike is one table, in `docs/interop.md`. Importing this module imports neither library.
"""

from marsnn.neurons.adopted import Adopted, adopt
from marsnn.neurons.lent import as_snntorch, as_spikingjelly

__all__ = ["Adopted", "adopt", "as_snntorch", "as_spikingjelly"]
