"""Reference and round trip: MarTrainer against plain loops; runs that go on are runs that never stopped."""

import copy
import json
import math
import sys
from dataclasses import fields, replace

import pytest
import torch
from torch.utils.data import Dataset
from transformers import LlamaConfig, LlamaForCausalLM

from marsnn.errors import DivergedError, FileError, InputError, MissingDependencyError
from marsnn.refine import (
    MarTrainer,
    SbdsConfig,
    TeacherCache,
    add_lora,
    add_spikes,
    convert,
    merge_lora,
    sbds_head_loss,
    sparsify,
    teacher_cache,
)
from marsnn.refine import trainer as module
from marsnn.refine.features import observed, places
from marsnn.refine.loop import Rows, last_whole_checkpoint, quiet_arguments
from marsnn.refine.trainer import counting, spiking_inputs
from tests.helpers import same
from tests.refine.models import SIZES, some_tokens, teacher

ROWS = some_tokens(16, 12, seed=3)


def student(sparsity="threshold", keep=0.5, spikes=True, ssm=(1,), **settings):
    """Three layers, one of them a state space layer, sparse and spiking as asked for."""
    torch.manual_seed(1)
    made = convert(teacher(), list(ssm))
    sample = some_tokens(8, 24)
    if sparsity:
        sparsify(made, sample, keep, sparsity)
    if spikes:
        add_spikes(made, sample, **{"steps": 3, "tau": 0.5, "fire_at": 0.5, **settings})
    return made.train()


@pytest.fixture(scope="module")
def made():
    """Made once; `copy.deepcopy` it."""
    return student()


def trainer(model, folder, sbds=None, dense=None, rows=ROWS, updates=6, batch=4, **more):
    """With quick settings."""
    options = {"learning_rate": 1e-2, "warmup": 1, "weight_decay": 0.0, "save_every": 100, "seed": 0, **more}
    data = rows if isinstance(rows, Dataset) else Rows(rows)
    return MarTrainer(
        model, teacher() if dense is None else dense, quiet_arguments(folder, updates, batch, **options),
        sbds, train_dataset=data,
    )  # fmt: skip


def weights(model):
    return {name: each.detach().clone() for name, each in model.state_dict().items()}


def losses(found):
    return [entry["loss"] for entry in found.state.log_history if "loss" in entry]


# ---- settings -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"alpha": -0.1}, "alpha must be finite and >= 0"),
        ({"beta": math.nan}, "beta"),
        ({"feature_weight": "much"}, "feature_weight"),
        ({"features": "inside"}, "features must be one of pre, post, both, none, got 'inside'"),
        ({"trained": "head"}, "trained must be one of all, ffn, spikes"),
        ({"sites": ("ears",)}, "no site 'ears'"),
        ({"sites": ()}, "no site"),
        ({"alternate": (1,)}, "two numbers of updates"),
        ({"alternate": (1, -1)}, "two numbers"),
        ({"alternate": (True, 1)}, "two numbers"),
        ({"alternate": (1, 0)}, "its second number is 0"),
        ({"steps_from": 0}, "steps_from"),
        ({"anneal": 1.5}, "anneal must be a share"),
        ({"anneal": -1}, "anneal"),
        ({"refresh_every": -1}, "refresh_every"),
        ({"refresh_every": 0.5}, "refresh_every"),
        ({"threshold_learning_rate": 0}, "threshold_learning_rate"),
    ],
)
def test_settings_that_can_not_be(change, said):
    with pytest.raises(InputError, match=said) as caught:
        SbdsConfig(**change)
    assert "\n" not in str(caught.value)


def test_every_setting_has_its_sentence():
    assert all(each.metadata["help"] for each in fields(SbdsConfig))


def test_the_course_by_hand():
    config = SbdsConfig(alternate=[2, 1], steps_from=6, anneal=0.5)
    assert [config.spikes_in(n) for n in range(6)] == [False, False, True] * 2
    # from 6 to 3 over 6 of 12 updates: 0.5 a step of the update
    assert [config.steps_at(n, 12, 3) for n in range(12)] == [6, 6, 5, 5, 4, 4, 3, 3, 3, 3, 3, 3]
    assert replace(config, steps_from=2).steps_at(0, 12, 3) == 3
    assert replace(config, anneal=0).steps_at(0, 12, 3) == 3
    assert all(SbdsConfig(alternate=(0, 1)).spikes_in(n) for n in range(4))


# ---- refused --------------------------------------------------------------------------------------------


def llama(**changes):
    return LlamaForCausalLM(LlamaConfig(**{**SIZES, **changes})).eval()


def test_pairs_that_do_not_belong_together(made, tmp_path, monkeypatch):
    model = copy.deepcopy(made)
    with pytest.raises(InputError, match="the teacher tells 99 tokens apart, the student 61"):
        trainer(model, tmp_path, dense=llama(vocab_size=99))
    with pytest.raises(InputError, match=r"num_hidden_layers is 2, the student's 3.*none"):
        trainer(model, tmp_path, dense=llama(num_hidden_layers=2))
    with pytest.raises(InputError, match="hidden_size is 32, the student's 24"):
        trainer(model, tmp_path, dense=llama(hidden_size=32))
    with pytest.raises(InputError, match="a student is a MarForCausalLM"):
        trainer(llama(), tmp_path)
    with pytest.raises(InputError, match="the student has none; add_spikes"):
        trainer(student(spikes=False), tmp_path, SbdsConfig(trained="spikes"))
    arguments = quiet_arguments(tmp_path, 1, 4, 1e-2, 1, 0.0, 1, 0)
    arguments._n_gpu = 2
    with pytest.raises(InputError, match=r"sees 2 GPUs .*torchrun --nproc-per-node 2"):
        MarTrainer(model, teacher(), arguments, train_dataset=Rows(ROWS))
    other = llama(num_hidden_layers=2, hidden_size=32, intermediate_size=20)
    trainer(model, tmp_path, SbdsConfig(features="none"), dense=other, updates=1).go_on()


# ---- features -------------------------------------------------------------------------------------------


def test_places_leave_out_what_stands_for_nothing(made):
    found = places(made)
    assert len(found) == 3 * 4 - 1
    assert (1, "mixer_out") not in found
    assert places(made, ["ffn_in"]) == [(0, "ffn_in"), (1, "ffn_in"), (2, "ffn_in")]
    with pytest.raises(InputError, match="no site 'ears'"):
        places(made, ["ears"])


def test_before_the_neuron_and_behind_it(made):
    tokens, where = some_tokens(2, 9), places(made)
    with observed(made, where, "both") as found:
        made.model(tokens, use_cache=False)
    assert set(found) == {(place, kind) for place in where for kind in ("pre", "post")}
    sites = dict(zip([(i, s) for i in range(3) for s in module.SITES], spiking_inputs(made), strict=True))
    for place in where:
        x, y = found[place, "pre"], found[place, "post"]
        assert x.shape == y.shape == (2, 9, 40 if place[1] == "ffn_out" else 24)
        neuron = sites[place].neuron
        assert torch.equal(y, neuron.decode(neuron.encode(x)))
        assert not torch.equal(x, y)
    with observed(teacher(), where, "both") as found:
        teacher().model(tokens, use_cache=False)
    assert all(torch.equal(found[place, "pre"], found[place, "post"]) for place in where)
    with observed(made, where, "none") as found:
        made.model(tokens, use_cache=False)
    assert not found
    assert not any(each._forward_pre_hooks for each in made.modules())


def test_features_of_a_teacher_are_its_students_before_any_change(tmp_path):
    """Attentions only, no sparsity, no spikes: the same model, so nothing is lost or learnt."""
    model = student(None, spikes=False, ssm=())
    before = weights(model)
    for kind in ("pre", "post", "both", "none"):
        found = trainer(model, tmp_path / kind, SbdsConfig(features=kind, feature_weight=1.0), updates=1)
        assert found.go_on() == [pytest.approx(0, abs=1e-5)]
        model.load_state_dict(before)


@pytest.mark.parametrize("kind", ["pre", "post", "both"])
def test_kinds_and_sites_are_what_is_compared(made, tmp_path, kind):
    found = {}
    for sites in (("ffn_in",), ("mixer_in", "ffn_out")):
        settings = SbdsConfig(features=kind, sites=sites, alternate=(0, 1))
        run = trainer(copy.deepcopy(made), tmp_path / "-".join(sites), settings, updates=1)
        run.go_on()
        (entry,) = [each for each in run.state.log_history if "loss" in each]
        assert entry["loss"] == pytest.approx(entry["loss_logits"] + 0.01 * entry["loss_features"], rel=1e-5)
        found[sites] = entry["loss_features"]
    assert len({round(each, 4) for each in found.values()}) == 2


# ---- the loss and its tokens ----------------------------------------------------------------------------


class Uneven(Dataset):
    """Rows with padding of their own at the left, and prompts of their own behind it."""

    def __init__(self, rows, labels=True):
        self.rows, self.labels = rows, labels

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        row = self.rows[index]
        there = torch.ones_like(row)
        there[: index % 5] = 0
        prompts = row.clone()  # padding is no -100 here: the mask alone must keep it out
        prompts[index % 5 : index % 5 + index % 4] = -100
        found = {"input_ids": row, "attention_mask": there, "index": torch.tensor(index)}
        return {**found, "labels": prompts} if self.labels else found


def test_what_counts_by_hand():
    ids = torch.arange(6)[None]
    assert counting({"input_ids": ids}).tolist() == [[True] * 5 + [False]]
    there = torch.tensor([[0, 0, 1, 1, 1, 1]])
    assert counting({"input_ids": ids, "attention_mask": there}).int().tolist() == [[0, 0, 1, 1, 1, 0]]
    labels = torch.tensor([[0, 1, -100, -100, 4, 5]])
    assert counting({"input_ids": ids, "labels": labels}).int().tolist() == [[1, 0, 0, 1, 1, 0]]
    both = {"input_ids": ids, "labels": labels, "attention_mask": there}
    assert counting(both).int().tolist() == [[0, 0, 0, 1, 1, 0]]


@pytest.mark.parametrize("labels", [True, False])
def test_batches_that_are_cut_are_the_whole_ones(made, tmp_path, labels):
    """Losses, their parts and weights: of 4 rows at once, 2 and 2, or one by one; and all of it in a loop."""
    data, found = Uneven(ROWS, labels), {}
    settings = SbdsConfig(alternate=(0, 1), feature_weight=0.1)
    for together in (4, 2, 1):
        model = copy.deepcopy(made)
        run = trainer(
            model, tmp_path / str(together), settings, rows=data, updates=4, together=together,
            learning_rate=1e-3,
        )  # fmt: skip
        run.go_on()
        course = [each for each in run.state.log_history if "loss" in each]
        found[together] = [
            [entry[name] for name in ("loss", "loss_logits", "loss_features")] for entry in course
        ]
    for together in (2, 1):
        for one, other in zip(found[together], found[4], strict=True):
            assert one == pytest.approx(other, rel=2e-4)


def test_a_gradient_is_that_of_the_loss_over_all_tokens_of_an_update(made, tmp_path):
    """Two batches of an update with unequal tokens, against one call of the loss on both."""
    model, dense = copy.deepcopy(made), teacher()
    run = trainer(model, tmp_path, SbdsConfig(features="none", alternate=(0, 1)))
    data = Uneven(ROWS)
    parts = [torch.utils.data.default_collate([data[i] for i in part]) for part in ((2, 7), (4, 5))]
    tokens = run._get_num_items_in_batch(parts, torch.device("cpu"))
    assert tokens.item() == sum(counting(part).sum().item() for part in parts)
    total = 0.0
    for part in parts:
        loss = run.compute_loss(model, part, num_items_in_batch=tokens)
        loss.backward()
        total += loss.item()
    found = {name: each.grad.clone() for name, each in model.named_parameters()}
    model.zero_grad()
    whole = torch.utils.data.default_collate([data[i] for i in (2, 7, 4, 5)])
    seen = {name: whole[name] for name in ("input_ids", "attention_mask")}
    loss = sbds_head_loss(
        dense.model(**seen).last_hidden_state, dense.lm_head.weight,
        model.model(**seen, use_cache=False).last_hidden_state, model.lm_head.weight, mask=counting(whole),
    ).loss  # fmt: skip
    loss.backward()
    assert total == pytest.approx(loss.item(), rel=1e-5)
    for name, each in model.named_parameters():
        torch.testing.assert_close(found[name], each.grad, rtol=1e-3, atol=1e-5, msg=name)


def test_an_update_without_a_token_that_counts_is_none(made, tmp_path):
    class Prompts(Uneven):
        def __getitem__(self, index):
            return {**super().__getitem__(index), "labels": torch.full((12,), -100)}

    model = copy.deepcopy(made)
    before = weights(model)
    assert trainer(model, tmp_path, rows=Prompts(ROWS), updates=2).go_on() == [0, 0]
    assert same(weights(model), before)


def test_parts_of_the_loss_are_means_over_what_is_logged(made, tmp_path):
    model = copy.deepcopy(made)
    arguments = quiet_arguments(tmp_path, 6, 4, 1e-3, 1, 0.0, 6, 0)
    arguments.logging_steps = 3
    run = MarTrainer(model, teacher(), arguments, train_dataset=Rows(ROWS))
    run.go_on()
    course = [each for each in run.state.log_history if "loss" in each]
    assert len(course) == 2
    for entry in course:
        assert entry["loss"] == pytest.approx(entry["loss_logits"] + 0.01 * entry["loss_features"], rel=1e-4)


def test_evaluation_is_of_the_whole_student_and_then_it_goes_on_as_it_was(made, tmp_path):
    """Evaluated amid updates without spikes, T above its own: neither what it sees nor the course changes."""
    settings = SbdsConfig(alternate=(3, 1), steps_from=5, anneal=1.0)
    plain = trainer(copy.deepcopy(made), tmp_path / "plain", settings, updates=4)
    plain.go_on()
    run = trainer(copy.deepcopy(made), tmp_path / "looking", settings, updates=4)
    run.args.eval_strategy, run.args.eval_steps, run.eval_dataset = "steps", 1, Rows(ROWS[:8])
    run.go_on()
    assert losses(run) == losses(plain)
    seen = [each["eval_loss"] for each in run.state.log_history if "eval_loss" in each]
    assert len(seen) == 4
    with torch.no_grad():
        batch = {"input_ids": ROWS[:8], "labels": ROWS[:8]}
        last = run.compute_loss(run.student.eval(), batch).item()
    assert seen[-1] == pytest.approx(last, rel=1e-5)
    assert all(each.enabled and each.neuron.steps == 3 for each in spiking_inputs(run.student))


# ---- the course of a run --------------------------------------------------------------------------------


def watched(run):
    """Whether spikes took part, T, and the gradient of log V in every update."""
    seen = []

    class Look(module.TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, **_):
            sites = spiking_inputs(run.student)
            size = sum(each.neuron.log_threshold.grad.abs().sum().item() for each in sites)
            seen.append((sites[0].enabled, sites[0].neuron.steps, size))

    run.add_callback(Look())
    return seen


def test_updates_in_turn_with_t_coming_down(made, tmp_path):
    run = trainer(
        copy.deepcopy(made), tmp_path, SbdsConfig(alternate=(1, 2), steps_from=5, anneal=0.5), updates=8
    )
    seen = watched(run)
    run.go_on()
    assert [each[0] for each in seen] == [False, True, True, False, True, True, False, True]
    assert [each[1] for each in seen] == [5, 5, 4, 4, 3, 3, 3, 3]
    for on, _, size in seen:
        assert (size > 0) == on  # exactly 0 without spikes
    assert all(each.enabled and each.neuron.steps == 3 for each in spiking_inputs(run.student))


def test_without_spikes_is_the_model_that_has_none(made):
    model, plain = copy.deepcopy(made), student(spikes=False)
    for each in spiking_inputs(model):
        each.enabled = False
    tokens = some_tokens(2, 9)
    assert torch.equal(model(tokens).logits, plain(tokens).logits)
    heard = []
    for each in spiking_inputs(model):
        each.listener = heard.append
    model(tokens)
    assert not heard


def test_log_v_has_a_rate_of_its_own_and_never_decays(made, tmp_path):
    settings = SbdsConfig(threshold_learning_rate=0.5)
    run = trainer(copy.deepcopy(made), tmp_path, settings, updates=3, weight_decay=0.1, learning_rate=1e-3)
    run.go_on()
    groups = run.optimizer.param_groups
    assert run.create_optimizer() is run.optimizer  # again adds nothing
    assert len(run.optimizer.param_groups) == 3
    (own,) = [group for group in groups if group.get("spikes")]
    thresholds = {id(each.neuron.log_threshold) for each in spiking_inputs(run.student)}
    assert {id(each) for each in own["params"]} == thresholds
    assert (own["weight_decay"], own["initial_lr"]) == (0.0, 0.5)
    names = {id(each): (name, each) for name, each in run.student.named_parameters()}
    grouped = [id(each) for group in groups for each in group["params"]]
    assert sorted(grouped) == sorted(names)  # each once
    for group in groups:
        if group["weight_decay"]:
            assert all(each.ndim > 1 for each in group["params"])
            assert group["initial_lr"] == 1e-3
    last = [group["lr"] / group["initial_lr"] for group in groups]
    assert last == pytest.approx([last[0]] * 3)  # one course for all


def test_a_schedule_that_was_asked_for_is_the_one(made, tmp_path):
    arguments = quiet_arguments(tmp_path, 4, 4, 1e-3, 1, 0.0, 4, 0)
    arguments.lr_scheduler_type, arguments.warmup_steps = "linear", 0
    run = MarTrainer(copy.deepcopy(made), teacher(), arguments, train_dataset=Rows(ROWS))
    run.go_on()
    rates = [each["learning_rate"] for each in run.state.log_history if "loss" in each]
    assert rates == pytest.approx([1e-3, 7.5e-4, 5e-4, 2.5e-4])
    arguments.lr_scheduler_type, arguments.output_dir = "cosine", str(tmp_path / "cosine")
    run = MarTrainer(copy.deepcopy(made), teacher(), arguments, train_dataset=Rows(ROWS))
    run.go_on()
    rates = [each["learning_rate"] for each in run.state.log_history if "loss" in each]
    assert rates == pytest.approx([1e-3 * (1 + math.cos(math.pi * n / 4)) / 2 for n in range(4)])


def test_the_rate_of_log_v_is_the_others_where_it_has_none(made, tmp_path):
    run = trainer(copy.deepcopy(made), tmp_path, updates=1)
    run.go_on()
    assert {group["initial_lr"] for group in run.optimizer.param_groups} == {1e-2}


@pytest.mark.parametrize(
    ("trained", "learns"),
    [("ffn", lambda name: ".mlp." in name), ("spikes", lambda name: "log_threshold" in name)],
)
def test_only_a_part_is_trained(made, tmp_path, trained, learns):
    model = copy.deepcopy(made)
    before = {name: each.detach().clone() for name, each in model.named_parameters()}
    trainer(model, tmp_path, SbdsConfig(trained=trained), updates=4).go_on()
    changed = {name for name, each in model.named_parameters() if not torch.equal(each, before[name])}
    assert changed == {name for name in before if learns(name)}


@pytest.mark.parametrize("mode", ["mask", "threshold"])
def test_sparsity_is_chosen_anew_when_it_is_due_and_only_then(tmp_path, mode):
    model = student(mode, 0.25)
    run = trainer(model, tmp_path, SbdsConfig(refresh_every=3, trained="ffn"), updates=7, learning_rate=5e-2)
    kept, levels = [], []

    def chosen():
        parts = [
            layer.mlp.down_proj.mask if mode == "mask" else layer.mlp.sparsifier.levels
            for layer in model.model.layers
        ]
        return [each.clone() for each in parts]  # fmt: skip

    class Look(module.TrainerCallback):
        def on_step_begin(self, args, state, control, **_):
            kept.append(chosen())

        def on_step_end(self, args, state, control, **_):
            levels.append(chosen())

    run.add_callback(Look())
    run.go_on()
    changed = [not same(a, b) for a, b in zip(kept, levels, strict=True)]
    assert changed == [False, False, True, False, False, True, False]
    if mode == "mask":  # as many weights as before, of every output
        for layer in model.model.layers:
            part = layer.mlp.down_proj
            assert (part.mask.sum(1) == round(part.keep * 40)).all()
    assert not any(part._forward_pre_hooks for part in model.modules())


def test_masks_and_levels_are_those_of_what_the_update_saw(tmp_path):
    for mode in ("mask", "threshold"):
        model = student(mode, 0.25)
        run = trainer(model, tmp_path / mode, SbdsConfig(refresh_every=1), updates=1, learning_rate=1e-9)
        part = model.model.layers[2].mlp
        part = part.down_proj if mode == "mask" else part.sparsifier
        seen = []
        hook = part.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0].detach()))
        run.go_on()
        hook.remove()
        (x,) = seen
        again = copy.deepcopy(part)
        if mode == "mask":
            again.refresh(x.flatten(0, 1).abs().mean(0))
            assert torch.equal(part.mask, again.mask)
        else:
            again.calibrate(x.flatten(0, 1))
            assert torch.equal(part.levels, again.levels)


# ---- going on -------------------------------------------------------------------------------------------


class Stop(module.TrainerCallback):
    """A kill after an update."""

    def __init__(self, after):
        self.after = after

    def on_step_begin(self, args, state, control, **_):
        if state.global_step == self.after:
            raise KeyboardInterrupt


@pytest.mark.parametrize("mode", ["mask", "threshold"])
@pytest.mark.parametrize("after", [1, 5])
def test_a_run_that_goes_on_is_the_run_that_never_stopped(tmp_path, mode, after):
    """Alternating, T coming down, sparsity chosen anew, two batches an update, rows begun anew."""
    settings = SbdsConfig(
        alternate=(1, 1), steps_from=6, anneal=0.8, refresh_every=3, threshold_learning_rate=0.1
    )
    options = {"updates": 9, "save_every": 2, "together": 2, "rows": ROWS[:8]}
    first = student(mode, 0.25)
    begin = copy.deepcopy(first)
    whole = trainer(first, tmp_path / "whole", settings, **options)
    whole.go_on()
    broken = trainer(copy.deepcopy(begin), tmp_path / "broken", settings, **options)
    broken.add_callback(Stop(after))
    with pytest.raises(KeyboardInterrupt):
        broken.go_on()
    again = trainer(copy.deepcopy(begin), tmp_path / "broken", settings, **options)
    again.go_on()
    assert again.began_at == after // 2 * 2
    assert losses(again) == losses(whole)
    assert same(weights(again.student), weights(whole.student))


def test_a_checkpoint_is_an_ordinary_model_with_its_own_t(made, tmp_path):
    from transformers import AutoModelForCausalLM

    settings = SbdsConfig(alternate=(1, 1), steps_from=6, anneal=1.0)
    run = trainer(copy.deepcopy(made), tmp_path, settings, updates=4, save_every=1)
    run.go_on()
    for folder in tmp_path.glob("checkpoint-*"):
        found = AutoModelForCausalLM.from_pretrained(folder)
        assert all(each.enabled and each.neuron.steps == 3 for each in spiking_inputs(found))
    assert same(
        weights(AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint-4")), weights(run.student)
    )


def test_a_checkpoint_of_which_a_byte_is_wrong_is_passed_over(made, tmp_path):
    run = trainer(copy.deepcopy(made), tmp_path, updates=4, save_every=2)
    run.go_on()
    for name in ("model.safetensors", "optimizer.pt"):
        path = tmp_path / "checkpoint-4" / name
        good = path.read_bytes()
        path.write_bytes(good[:-9] + bytes([good[-9] ^ 1]) + good[-8:])
        assert last_whole_checkpoint(tmp_path).name == "checkpoint-2"
        path.write_bytes(good)
    assert last_whole_checkpoint(tmp_path).name == "checkpoint-4"
    assert last_whole_checkpoint(tmp_path, before=4).name == "checkpoint-2"


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_nan_stops_and_the_last_good_checkpoint_is_kept(made, tmp_path, monkeypatch, where):
    model = copy.deepcopy(made)
    run = trainer(model, tmp_path, SbdsConfig(alternate=(0, 1)), updates=6, save_every=2)
    plain = run.compute_loss

    def poisoned(*args, **kwargs):
        loss = plain(*args, **kwargs)
        if run.state.global_step == 3:
            factor = torch.tensor(math.nan)
            loss = loss * factor if where == "loss" else loss + (factor * model.lm_head.weight).sum() * 0
        return loss

    monkeypatch.setattr(run, "compute_loss", poisoned)
    with pytest.raises(DivergedError, match=r"in update 4; .*checkpoint-2 is the last good") as caught:
        run.go_on()
    assert "\n" not in str(caught.value)
    again = trainer(copy.deepcopy(made), tmp_path, SbdsConfig(alternate=(0, 1)), updates=6, save_every=2)
    assert all(math.isfinite(each) for each in again.go_on())
    assert again.began_at == 2


def test_tensorboard_gets_the_parts(made, tmp_path):
    pytest.importorskip("tensorboard")
    trainer(copy.deepcopy(made), tmp_path, updates=2, tensorboard=True).go_on()
    (events,) = tmp_path.rglob("events.out.tfevents*")
    held = events.read_bytes()
    for name in (b"train/loss_logits", b"train/loss_features", b"train/learning_rate"):
        assert name in held


def test_bfloat16_products_beside_float32_weights(made, tmp_path):
    exact = trainer(copy.deepcopy(made), tmp_path / "exact", updates=3)
    rough = trainer(copy.deepcopy(made), tmp_path / "rough", updates=3, bf16=True)
    exact.go_on()
    seen = []
    hook = rough.student.model.layers[0].mlp.up_proj.register_forward_hook(
        lambda _, args, out: seen.append(out.dtype)
    )
    rough.go_on()
    hook.remove()
    assert set(seen) == {torch.bfloat16}
    assert {each.dtype for each in rough.student.parameters()} == {torch.float32}
    assert losses(rough) != losses(exact)
    assert losses(rough) == pytest.approx(losses(exact), rel=0.1)


# ---- a teacher that is remembered -----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_remembered_teacher_says_the_same(made, tmp_path, dtype):
    dense = copy.deepcopy(teacher()).to(dtype)
    for rows in (Rows(ROWS), Uneven(ROWS)):
        said = TeacherCache.build(tmp_path / type(rows).__name__, dense, rows, batch=3)
        assert (said.vocabulary, said.rows) == (61, 16)
        batch = torch.utils.data.default_collate([rows[i] for i in (5, 0, 11)])
        seen = {"attention_mask": batch["attention_mask"]} if "attention_mask" in batch else {}
        with torch.no_grad():
            live = dense.model(batch["input_ids"], **seen).last_hidden_state
        torch.testing.assert_close(said.read(batch, torch.device("cpu")), live)
        assert torch.equal(said.head(torch.device("cpu")), dense.lm_head.weight)


def test_training_by_a_remembered_teacher_is_training_by_the_teacher(made, tmp_path):
    settings = SbdsConfig(features="none")
    live = trainer(copy.deepcopy(made), tmp_path / "live", settings)
    said = TeacherCache.build(tmp_path / "said", teacher(), Rows(ROWS), batch=16)
    kept = trainer(copy.deepcopy(made), tmp_path / "kept", settings, dense=said)
    assert kept.go_on() == pytest.approx(live.go_on(), rel=1e-4)
    with pytest.raises(InputError, match='features="none"'):
        trainer(copy.deepcopy(made), tmp_path / "no", dense=said)
    with pytest.raises(InputError, match="rows have an"):
        trainer(copy.deepcopy(made), tmp_path / "no", settings, dense=said, rows=ROWS[:, :9]).go_on()


def test_what_a_teacher_said_is_kept_for_the_same_only(tmp_path, monkeypatch):
    build = lambda *given: TeacherCache.build(tmp_path, *given)  # noqa: E731
    build(teacher(), Rows(ROWS))
    before = (tmp_path / "hidden.bin").stat().st_mtime_ns
    build(teacher(), Rows(ROWS))
    assert (tmp_path / "hidden.bin").stat().st_mtime_ns == before
    keys = {TeacherCache(tmp_path).key}
    other = copy.deepcopy(teacher())
    with torch.no_grad():
        other.lm_head.weight[3, 3] += 1e-3
    for given in ((other, Rows(ROWS)), (teacher(), Rows(ROWS.flip(0))), (teacher(), Uneven(ROWS))):
        keys.add(build(*given).key)
    assert len(keys) == 4
    (tmp_path / "hidden.bin").write_bytes(b"12")
    with pytest.raises(FileError, match="holds 2 bytes of 18,432"):
        TeacherCache(tmp_path)
    assert build(teacher(), Rows(ROWS)).rows == 16
    (tmp_path / "teacher.json").write_text(json.dumps({"format": "other"}))
    with pytest.raises(FileError, match="delete it"):
        TeacherCache(tmp_path)
    with pytest.raises(FileError, match="no such file"):
        TeacherCache(tmp_path / "nowhere")
    with pytest.raises(InputError, match="of one length"):
        build(teacher(), [{"input_ids": ROWS[0]}, {"input_ids": ROWS[0, :5]}])
    monkeypatch.setattr(
        teacher_cache.os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left"))
    )
    with pytest.raises(FileError, match="no space left"):
        build(other, Rows(ROWS[:3]))


# ---- LoRA -----------------------------------------------------------------------------------------------


def with_lora(rank=2):
    model = student()
    torch.manual_seed(5)
    add_lora(model, rank)
    return model


def test_lora_trains_beside_frozen_projections_goes_on_and_merges(tmp_path):
    pytest.importorskip("peft")
    model = with_lora()
    before = weights(model)
    whole = trainer(model, tmp_path / "whole", updates=6, save_every=2)
    whole.go_on()
    base = [name for name in before if name.endswith("base_layer.weight")]
    assert len(base) == 3 * 7
    learnt = {name for name, each in model.named_parameters() if each.requires_grad}
    for name, each in model.named_parameters():
        frozen = name in base or "embed_tokens" in name or "lm_head" in name
        assert torch.equal(each, before[name]) == frozen, name
        assert (name in learnt) != frozen
    broken = trainer(with_lora(), tmp_path / "broken", updates=6, save_every=2)
    broken.add_callback(Stop(3))
    with pytest.raises(KeyboardInterrupt):
        broken.go_on()
    again = trainer(with_lora(), tmp_path / "broken", updates=6, save_every=2)
    again.go_on()
    assert again.began_at == 2
    assert same(weights(again.student), weights(model))
    tokens = some_tokens(2, 9)
    model.eval()
    for each in spiking_inputs(model):
        each.enabled = False  # a spike that rounding turns over would hide the rest
    with torch.no_grad():
        right = model(tokens).logits
        merge_lora(model)
        torch.testing.assert_close(model(tokens).logits, right, rtol=1e-4, atol=1e-5)
    assert set(weights(model)) == set(weights(student()))
    assert not torch.equal(right, student()(tokens).logits)


def test_lora_refuses_what_it_can_not(monkeypatch):
    with pytest.raises(InputError, match="no nose"):
        add_lora(student(), targets=("nose",))
    with pytest.raises(InputError, match="rank"):
        add_lora(student(), rank=0)
    with pytest.raises(InputError, match="a mask chooses among weights"):
        add_lora(student("mask"))
    monkeypatch.setitem(sys.modules, "peft", None)
    monkeypatch.setattr("marsnn.refine.lora.find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"marsnn\[hf\]"):
        add_lora(student())
