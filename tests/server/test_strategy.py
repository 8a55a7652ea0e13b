import math
from collections import Counter

import federation_world as world
import numpy as np
import pytest
import torch
from fedrec._streams import torch_stream
from fedrec.client.wire import TrainReply, decode_named, decode_order, encode_named, encode_reply
from fedrec.privacy.mechanisms import clip_update
from fedrec.server.strategy import MetaStrategy
from flwr.app import ConfigRecord, Message

SGD = {"server__outer_optimizer": "sgd", "server__decay": "none", "server__outer_lr": 1.0}
LENGTH = sum(math.prod(shape) for shape in world.SHAPES.values())


def strategy(tmp_path, changes=None, **plan):
    return MetaStrategy(world.config(**(SGD | (changes or {}))), world.plan(tmp_path, **plan))


def unprotected(**changes):
    return {"privacy__unit": "none", "privacy__epsilon": 8.0, "privacy__noise_multiplier": None} | changes


def hold(meta, grid, number=1, phi=None, edit=lambda replies: replies):
    """One round by Flower's two halves; returns the step that phi took."""
    phi = phi or world.phi0()
    messages = list(meta.configure_train(number, encode_named(phi), ConfigRecord(), grid))
    arrays, _ = meta.aggregate_train(number, edit(list(grid.send_and_receive(messages))))
    moved = decode_named(arrays)
    return {name: moved[name] - phi[name] for name in phi}


def drawn(messages):
    return sorted(int(d) for message in messages for d in decode_order(message.content).devices)


def test_orders_carry_the_policy_and_the_drawn_devices_to_their_nodes(tmp_path):
    grid, meta = world.grid(), strategy(tmp_path)
    messages = list(meta.configure_train(2, encode_named(world.phi0()), ConfigRecord(), grid))
    nodes = list(grid.get_node_ids())
    for message in messages:
        order = decode_order(message.content)
        place = nodes.index(message.metadata.dst_node_id)
        assert message.metadata.message_type == "train"
        assert (order.round, order.schema, order.run) == (2, "world-1", world.config(**SGD).fingerprint()[:16])
        assert all(device % 3 == place for device in order.devices)
    again = list(strategy(tmp_path).configure_train(2, encode_named(world.phi0()), ConfigRecord(), grid))
    other = list(strategy(tmp_path).configure_train(3, encode_named(world.phi0()), ConfigRecord(), grid))
    assert drawn(again) == drawn(messages) != drawn(other)


def test_a_deployed_node_is_asked_for_its_own_device(tmp_path):
    grid = world.grid(nodes=12)
    messages = list(
        strategy(tmp_path, single=True).configure_train(1, encode_named(world.phi0()), ConfigRecord(), grid)
    )
    assert 0 < len(messages) < 12
    assert all(decode_order(message.content).devices is None for message in messages)


def test_a_deployments_draw_does_not_follow_the_seed(tmp_path):
    grid, meta = world.grid(), strategy(tmp_path, simulation=False)
    draws = [drawn(meta.configure_train(1, encode_named(world.phi0()), ConfigRecord(), grid)) for _ in range(20)]
    assert len({tuple(draw) for draw in draws}) > 1


@pytest.mark.parametrize("nodes", [1, 3, 5])
def test_without_noise_the_step_is_the_plain_mean_of_the_drawn_updates(tmp_path, nodes):
    cohort = world.Cohort()
    step = hold(strategy(tmp_path, unprotected(), noise_multiplier=None), world.grid(cohort, nodes))
    devices = sorted(int(device) for order in cohort.orders for device in order.devices)
    for name, moved in step.items():
        updates = [clip_update(world.update_of(d, 1, world.phi0()), world.CLIP, world.SCALES).value for d in devices]
        expected = torch.stack([update[name].double() for update in updates]).sum(dim=0) / (0.5 * world.POPULATION)
        torch.testing.assert_close(moved.double(), expected, rtol=1e-6, atol=1e-7)


def test_off_equals_plain_within_the_noise_that_is_added(tmp_path):
    """The private step less the plain one is the seeded noise over the fixed divisor."""
    plain = hold(strategy(tmp_path, unprotected(), noise_multiplier=None), world.grid())
    private = hold(strategy(tmp_path), world.grid())
    generator = torch_stream(3, 1, "server-noise")
    for name in sorted(plain):
        noise = torch.randn(world.SHAPES[name], generator=generator, dtype=torch.float64)
        expected = noise * world.CLIP * world.SCALES.get(name, 1.0) / (0.5 * world.POPULATION)
        torch.testing.assert_close((private[name] - plain[name]).double(), expected, rtol=1e-4, atol=1e-6)


def test_missing_replies_lower_neither_noise_nor_divisor(tmp_path):
    """Losing one node's reply takes exactly its sum over the same divisor away."""
    full = hold(strategy(tmp_path), world.grid())
    lost = []

    def lose_one(replies):
        lost.append(replies.pop(1))
        return replies

    partial = hold(strategy(tmp_path), world.grid(), edit=lose_one)
    missing = decode_named(lost[0].content["update"])
    for name, step in full.items():
        torch.testing.assert_close(step - partial[name], missing[name] / 6.0, rtol=1e-4, atol=1e-6)


def test_a_round_that_hears_nobody_still_releases_noise(tmp_path):
    empty = hold(strategy(tmp_path), world.grid(), edit=lambda replies: [])
    nobody = hold(strategy(tmp_path, {"server__participation": 1e-9}), world.grid())
    for name in empty:
        assert float(empty[name].abs().min()) > 0
        # the same noise over 0.5 and over 1e-9 of the population
        torch.testing.assert_close(empty[name], nobody[name] * (1e-9 / 0.5), rtol=1e-4, atol=1e-8)


def test_the_order_of_arrival_does_not_matter(tmp_path):
    first = hold(strategy(tmp_path), world.grid())
    second = hold(strategy(tmp_path), world.grid(), edit=lambda replies: replies[::-1])
    assert world.same(first, second)


def test_bad_replies_do_not_count_and_the_verdict_says_so(tmp_path):
    def spoil(replies):
        bad = encode_reply(TrainReply(1, "other", update=world.phi0(), devices=1))
        replies[0].content = bad
        return replies

    meta = strategy(tmp_path)
    hold(meta, world.grid(), edit=spoil)
    assert meta.verdict.quarantined == {"schema": 1}
    assert meta.verdict.devices > 0


def test_evaluation_stays_off_the_wire(tmp_path):
    meta = strategy(tmp_path)
    assert list(meta.configure_evaluate(1, encode_named(world.phi0()), ConfigRecord(), world.grid())) == []
    assert meta.aggregate_evaluate(1, []) is None


def test_a_round_is_configured_before_it_is_aggregated_and_counts_once(tmp_path):
    meta, grid = strategy(tmp_path), world.grid()
    with pytest.raises(ValueError, match="round 1 to be configured first"):
        meta.aggregate_train(1, [])
    hold(meta, grid)
    with pytest.raises(ValueError, match="round 1 to be configured first"):
        meta.aggregate_train(1, [])


def test_the_summary_says_what_protects_whom(tmp_path, caplog):
    with caplog.at_level("INFO", logger="fedrec"):
        strategy(tmp_path).summary()
    assert "12 devices, Poisson rate 0.5, sgd with step size 1; unit user, clip 0.4, noise 1" in caplog.text


def test_it_runs_under_flowers_own_loop(tmp_path):
    result = strategy(tmp_path).start(world.grid(), encode_named(world.phi0()), num_rounds=2, timeout=60)
    assert sorted(result.train_metrics_clientapp) == [1, 2]
    assert float(decode_named(result.arrays)["items"].abs().sum()) > 0


@pytest.mark.statistical
def test_devices_are_drawn_by_poisson_sampling(tmp_path):
    """Each device independently with rate q: counts are binomial with variance n q (1 - q), pairs are uncorrelated."""
    grid, rounds, q = world.grid(), 1500, 0.5
    meta = strategy(tmp_path)
    phi = encode_named(world.phi0())
    hits = np.zeros((rounds, world.POPULATION))
    for number in range(1, rounds + 1):
        hits[number - 1, drawn(meta.configure_train(number, phi, ConfigRecord(), grid))] = 1
    sizes = hits.sum(axis=1)
    assert abs(hits.mean() - q) < 4 * math.sqrt(q * (1 - q) / hits.size)
    variance = world.POPULATION * q * (1 - q)
    assert abs(sizes.var() / variance - 1) < 4 * math.sqrt(2 / rounds)
    assert np.abs(hits.mean(axis=0) - q).max() < 4.5 * math.sqrt(q * (1 - q) / rounds)
    correlations = np.corrcoef(hits.T) - np.eye(world.POPULATION)
    assert np.abs(correlations).max() < 5 / math.sqrt(rounds)
    assert len(Counter(sizes)) > 6  # a fixed-size sample would have one size


@pytest.mark.statistical
@pytest.mark.parametrize("simulation", [True, False])
def test_the_aggregate_has_the_noise_that_is_accounted(tmp_path, simulation):
    """Standard deviation z S scale / (q n) in every tensor: the right scale is accepted, 2/3 and 3/2 of it are not."""
    rounds, divisor = 400, 0.5 * world.POPULATION
    meta = strategy(tmp_path, {"server__rounds": rounds}, simulation=simulation)
    grid = world.grid()
    draws = {name: [] for name in world.SHAPES}
    for number in range(1, rounds + 1):
        for name, step in hold(meta, grid, number, edit=lambda replies: []).items():
            draws[name].append(step.reshape(-1).numpy())
    for name, steps in draws.items():
        values = np.concatenate(steps).astype(np.float64)
        scale = 1.0 * world.CLIP * world.SCALES.get(name, 1.0) / divisor
        tolerance = 4.5 * scale / math.sqrt(2 * values.size)
        measured = math.sqrt((values**2).mean())
        assert abs(measured - scale) < tolerance
        assert abs(measured - scale * 2 / 3) > tolerance
        assert abs(measured - scale * 3 / 2) > tolerance
        assert abs(values.mean()) < 4.5 * scale / math.sqrt(values.size)


def test_messages_are_flowers_own(tmp_path):
    messages = strategy(tmp_path).configure_train(1, encode_named(world.phi0()), ConfigRecord(), world.grid())
    assert all(isinstance(message, Message) and message.metadata.group_id == "1" for message in messages)
