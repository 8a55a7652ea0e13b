import pytest
from fedrec.simulation.grid import LocalGrid
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from flwr.supercore.run import Run


def counting_app(seen, fail=()):
    app = ClientApp()

    @app.train()
    def train(message, context):
        seen.append((context.node_id, dict(context.node_config), dict(context.run_config)))
        calls = context.state.setdefault("calls", ConfigRecord({"n": 0}))
        calls["n"] += 1
        message.content["c"]["list"].append(9)
        if context.node_id in fail:
            raise ValueError("private text")
        content = RecordDict({"c": ConfigRecord({"n": calls["n"], "group": message.metadata.group_id})})
        return Message(content, reply_to=message)

    return app


def messages(nodes, number=1):
    content = {"c": ConfigRecord({"list": [number]}), "a": ArrayRecord(), "m": MetricRecord({"x": 1.0})}
    return [Message(RecordDict(content), node, "train", group_id=str(number)) for node in nodes]


def test_each_node_answers_with_its_own_context_and_state():
    seen = []
    grid = LocalGrid(counting_app(seen), 3, {"server.rounds": 2})
    nodes = list(grid.get_node_ids())
    for number in (1, 2):
        replies = list(grid.send_and_receive(messages(nodes, number)))
        assert [reply.metadata.src_node_id for reply in replies] == nodes
        assert [reply.content["c"]["n"] for reply in replies] == [number] * 3
        assert all(reply.content["c"]["group"] == reply.metadata.group_id == str(number) for reply in replies)
        assert all(reply.metadata.dst_node_id == 1 for reply in replies)
    assert [config for _, config, _ in seen[:3]] == [{"partition-id": i, "num-partitions": 3} for i in range(3)]
    assert seen[0][2] == {"server.rounds": 2}


def test_replies_name_the_message_that_they_answer():
    grid = LocalGrid(counting_app([]), 2)
    sent = messages(grid.get_node_ids())
    replies = list(grid.send_and_receive(sent))
    assert [reply.metadata.reply_to_message_id for reply in replies] == [m.metadata.message_id for m in sent]
    assert len({message.metadata.message_id for message in [*sent, *replies]}) == 4


def test_nobody_shares_memory():
    grid = LocalGrid(counting_app([]), 1)
    sent = messages(grid.get_node_ids())
    list(grid.send_and_receive(sent))
    assert sent[0].content["c"]["list"] == [1]


def test_an_exception_becomes_an_error_reply_and_changes_no_state(caplog):
    grid = LocalGrid(counting_app([], fail={3}), 2)
    for number in (1, 2):
        good, bad = grid.send_and_receive(messages([2, 3], number))
        assert good.content["c"]["n"] == number
        assert bad.has_error()
        assert bad.error.code == ErrorCode.CLIENT_APP_RAISED_EXCEPTION
        assert bad.metadata.src_node_id == 3
    assert grid._contexts[3].state == RecordDict()
    assert "the ClientApp of node 3 failed" in caplog.text


def test_a_node_that_is_not_there_is_an_error_reply():
    (reply,) = LocalGrid(counting_app([]), 1).send_and_receive(messages([77]))
    assert reply.error.code == ErrorCode.NODE_UNAVAILABLE


def test_ctrl_c_gets_through_and_the_rest_is_forgotten():
    app = ClientApp()

    @app.train()
    def train(message, context):
        raise KeyboardInterrupt

    grid = LocalGrid(app, 2)
    with pytest.raises(KeyboardInterrupt):
        grid.send_and_receive(messages(grid.get_node_ids()))
    assert grid._waiting == {}


@pytest.mark.parametrize(("timeout", "answers"), [(None, 4), (0.5, 0), (2.0, 2), (3.5, 3), (99.0, 4)])
def test_a_deadline_holds_between_nodes(timeout, answers):
    """Each node takes 1 s by this clock; what is late is lost, and what comes after it is not begun."""
    now, seen = [0.0], []
    app = ClientApp()

    @app.train()
    def train(message, context):
        now[0] += 1.0
        seen.append(context.node_id)
        return Message(message.content, reply_to=message)

    grid = LocalGrid(app, 4, clock=lambda: now[0])
    assert len(list(grid.send_and_receive(messages(grid.get_node_ids()), timeout=timeout))) == answers
    assert len(seen) == min(4, answers + 1)
    assert len(list(grid.send_and_receive(messages([2])))) == 1


def test_pushed_messages_answer_once_when_pulled():
    seen = []
    grid = LocalGrid(counting_app(seen), 2)
    keys = list(grid.push_messages(messages(grid.get_node_ids())))
    assert seen == []
    assert len(list(grid.pull_messages([keys[1], "unknown"]))) == 1
    assert len(list(grid.pull_messages(keys))) == 1
    assert list(grid.pull_messages(keys)) == []


def test_a_grid_knows_its_run_and_writes_messages_in_its_name():
    first, second = LocalGrid(counting_app([]), 1, run_id=7), LocalGrid(counting_app([]), 1, run_id=8)
    for grid, run in ((first, 7), (second, 8), (first, 7)):
        assert grid.run.run_id == run
        message = grid.create_message(RecordDict(), "train", next(iter(grid.get_node_ids())), "1")
        assert message.metadata.run_id == run
    first.set_run(Run.create_empty(9))
    assert first.run.run_id == 9


def test_a_grid_without_nodes_is_refused():
    with pytest.raises(ValueError, match="expected nodes to be an integer >= 1, got 0"):
        LocalGrid(counting_app([]), 0)
