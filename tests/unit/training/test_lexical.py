"""`lexical_loss` against its formula in plain Python, gradient checks, targets, and training with it."""

import math
from itertools import islice

import numpy as np
import pytest
import torch

from gircse_rag.errors import InputError
from gircse_rag.training import lexical, lexical_loss
from gircse_rag.training.batches import Batch
from gircse_rag.training.config import TrainConfig
from gircse_rag.training.data import Row
from gircse_rag.training.lexical import ContentWords
from gircse_rag.training.run import train
from gircse_rag.training.trainer import Trainer
from tests import tiny
from tests.unit.training.test_trainer import ROWS, inputs, make_trainer, read_log, weights

N, K, D, V, T = 4, 3, 6, 11, 5


def example(seed=0):
    """States, head, target ids and weights; the third text has no target, the last one has padding."""
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(N, K, D, generator=generator, dtype=torch.float64)
    head = torch.randn(V, D, generator=generator, dtype=torch.float64)
    ids = torch.stack([torch.randperm(V, generator=generator)[:T] for _ in range(N)])
    q = torch.rand(N, T, generator=generator, dtype=torch.float64)
    q[2], q[3, 2:] = 0, 0
    return states, head, ids, q / q.sum(1, keepdim=True).clamp(min=1e-9)


def transcription(states, head, ids, q, tau=1.0, prefixes=False):
    losses = []
    for text, tokens, row in zip(states.tolist(), ids.tolist(), q.tolist(), strict=True):
        if sum(row) == 0:
            continue
        distributions = []
        for h in text:
            exps = [math.exp(sum(a * b for a, b in zip(h, e, strict=True)) / tau) for e in head.tolist()]
            distributions.append([x / sum(exps) for x in exps])
        by_count = []
        for k in range(1, len(text) + 1):
            p = [sum(column) / k for column in zip(*distributions[:k], strict=True)]
            by_count.append(-sum(w * math.log(p[t]) for t, w in zip(tokens, row, strict=True) if w))
        losses.append(sum(by_count) / len(by_count) if prefixes else by_count[-1])
    return sum(losses) / len(losses)


@pytest.mark.parametrize("prefixes", [False, True])
@pytest.mark.parametrize("tau", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("chunk", [3, 100])
def test_equals_the_transcription_for_every_chunk_size(monkeypatch, chunk, tau, prefixes):
    monkeypatch.setattr(lexical, "VOCABULARY_CHUNK", chunk)
    monkeypatch.setattr(lexical, "TEXTS_CHUNK", chunk)
    for seed in range(3):
        states, head, ids, q = example(seed)
        found = lexical_loss(states, head, ids, q, temperature=tau, prefixes=prefixes)
        assert found.item() == pytest.approx(transcription(states, head, ids, q, tau, prefixes), rel=1e-9)


@pytest.mark.parametrize("prefixes", [False, True])
def test_gradients(monkeypatch, prefixes):
    monkeypatch.setattr(lexical, "VOCABULARY_CHUNK", 4)
    monkeypatch.setattr(lexical, "TEXTS_CHUNK", 3)
    states, *rest = example(1)
    check = torch.autograd.gradcheck(
        lambda h: lexical_loss(h, *rest, temperature=0.7, prefixes=prefixes), (states.requires_grad_(),)
    )
    assert check


def test_low_precision_states_are_computed_in_float32():
    states, head, ids, q = example()
    low = lexical_loss(states.bfloat16(), head.bfloat16(), ids, q)
    assert low.dtype == torch.float32
    assert low.item() == pytest.approx(transcription(states.bfloat16(), head.bfloat16(), ids, q), rel=1e-5)


def test_extreme_logits_have_a_finite_gradient():
    states, head, ids, q = example()
    states = (1e3 * states).float().requires_grad_()
    loss = lexical_loss(states, head, ids, q)
    loss.backward()
    assert torch.isfinite(loss) and states.grad is not None and torch.isfinite(states.grad).all()


def test_without_any_target_the_loss_is_0():
    states, head, ids, q = example()
    states.requires_grad_()
    loss = lexical_loss(states, head, ids, 0 * q)
    loss.backward()
    assert loss.item() == 0 and states.grad is not None and not states.grad.any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h, e, t, q: ((h[..., :4], e, t, q), {}), r"must be \(n, K, d\) and \(V, d\)"),
        (lambda h, e, t, q: ((h[:, :0], e, t, q), {}), r"must be \(n, K, d\) and \(V, d\)"),
        (lambda h, e, t, q: ((h, e, t[:2], q), {}), r"must both be \(4, T\)"),
        (lambda h, e, t, q: ((h, e, t, q[:, 0]), {}), r"must both be \(4, T\)"),
        (lambda h, e, t, q: ((h, e, t, q), {"temperature": 0}), "temperature is 0; it must be positive"),
    ],
)
def test_mismatched_arguments_are_refused(change, message):
    arguments, options = change(*example())
    with pytest.raises(InputError, match=message):
        lexical_loss(*arguments, **options)


WORDS = [
    Row("find", f"the way {a}", f"of the world {a}{b}", None) for a, b in zip("0123456789", "!#$%&*+,-;", strict=True)
]
"""Each row has one content word that its texts share, and one that only its positive has."""


def target(rows, words="both"):
    """Per text of a batch of `rows`: {token: weight}."""
    trainer_rows = WORDS + [row for row in rows if row not in WORDS]
    source = ContentWords(trainer_rows, tiny.tokenizer(), 400, words)
    batch = make_batch(rows)
    ids, q = source.targets(batch)
    return [{int(t): float(w) for t, w in zip(a, b, strict=True) if w} for a, b in zip(ids, q, strict=True)]


def make_batch(rows):
    passages = len(rows) + sum(row.negative is not None for row in rows)
    texts = [[1]] * (len(rows) + passages)
    return Batch(rows, texts, np.arange(len(rows)), np.zeros((len(rows), passages), dtype=bool), len(rows))


def token(symbol):
    (found,) = tiny.tokenizer()(symbol, add_special_tokens=False)["input_ids"]
    return found


def test_targets_are_half_own_words_and_half_the_counterparts():
    query, positive = target(WORDS[2:3])
    shared, new = token("2"), token("$")
    for found in (query, positive):
        assert found == pytest.approx({shared: 0.5 + 0.25, new: 0.25}), "words of most rows are not content words"


def test_expansion_targets_lack_the_texts_own_words():
    query, positive = target(WORDS[2:3], "other")
    assert query == {token("$"): 1.0} and positive == {}


def test_a_negative_says_its_own_words_and_only_those():
    row = WORDS[1]._replace(negative="of the world 7")
    assert target([row])[2] == {token("7"): 1.0}
    assert target([row], "other")[2] == {}


def test_targets_do_not_depend_on_the_rest_of_the_batch():
    alone, together = target(WORDS[3:4]), target(WORDS[2:6])
    assert alone[0] == pytest.approx(together[1]) and alone[1] == pytest.approx(together[5])


def test_a_text_without_content_words_is_skipped_and_counted(tmp_path):
    trainer = make_trainer(tmp_path, lexical_weight=0.1)
    assert trainer.content_words is not None
    batch = next(trainer.batches.start())
    everything = trainer.step(batch)["lexical_skipped"]
    trainer.content_words.idf[:] = 0
    record = trainer.step(batch)
    assert record["lexical"] == 0 and everything < record["lexical_skipped"] == len(batch.texts)


@pytest.mark.slow
def test_supervision_teaches_the_soft_tokens_their_targets(tmp_path):
    options = {"rows": 300, "save_rows": 300, "learning_rate": 0.003, "temperature": 0.1}
    spoken = {}
    for weight in (0.0, 0.3):
        trainer = make_trainer(tmp_path / str(weight), lexical_weight=weight, **options)
        trainer.run()
        judge = make_trainer(tmp_path / "judge", lexical_weight=1.0)
        losses = []
        for batch in islice(judge.batches.start(), 6):
            with torch.no_grad():
                states = trainer.module(batch.texts, 3, "refine", True)
            losses.append(judge.supervise(batch, states[:, :-1]).item())
        spoken[weight] = sum(losses) / len(losses)
    assert spoken[0.3] < 0.8 * spoken[0.0]
    log = read_log(tmp_path / "0.3")
    assert all(record["lexical"] > 0 for record in log) and "lexical" not in read_log(tmp_path / "0.0")[0]


def test_the_supervised_states_are_those_of_the_soft_tokens(tmp_path):
    """head @ h_0..h_{K-1} are the logits whose softmax the model feeds to itself; icr_loss still gets h_1..h_K."""
    seen = {}

    class Watched(Trainer):
        def supervise(self, batch, states):
            seen["supervised"] = states
            return super().supervise(batch, states)

        def objective(self, batch, states):
            seen["pooled"] = states
            return super().objective(batch, states)

    made = make_trainer(tmp_path, lexical_weight=0.1)
    trainer = Watched(made.module, made.batches, made.config)
    batch = next(trainer.batches.start())
    fed: list[torch.Tensor] = []
    trainer.module.on_soft_token = fed.append
    trainer._backward(batch, 3)
    packed = trainer.module.pack(batch.texts)
    said = torch.stack([packed.restore(weights) for weights in fed], dim=1)
    expected = torch.softmax(seen["supervised"] @ trainer.module.head.T, dim=-1)
    torch.testing.assert_close(said, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(seen["pooled"], trainer.module(batch.texts, 3), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("chunk_tokens", [1, 60])
def test_gradient_caching_does_not_change_gradients(tmp_path, chunk_tokens):
    whole, parts = (make_trainer(tmp_path, lexical_weight=1.0, chunk_tokens=size) for size in (None, chunk_tokens))
    batch = next(whole.batches.start())
    for trainer in (whole, parts):
        trainer._backward(batch, 3)
    for one, other in zip(whole.parameters, parts.parameters, strict=True):
        assert one.grad is not None and other.grad is not None
        assert (one.grad - other.grad).norm() <= 1e-4 * one.grad.norm()


@pytest.mark.slow
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path):
    keys = {"lexical_weight": [0.3, 0.0], "lexical_prefixes": True}
    straight = make_trainer(tmp_path / "a", **keys)
    straight.run()
    stopped = make_trainer(tmp_path / "b", **keys)
    for batch in islice(stopped.batches.start(), 2):
        stopped.step(batch)
    stopped.save()
    resumed = make_trainer(tmp_path / "b", **keys)
    resumed.resume(tmp_path / "b")
    resumed.run()
    assert resumed.cursor == straight.cursor
    torch.testing.assert_close(weights(resumed), weights(straight), rtol=0, atol=1e-7)


def test_the_weight_changes_linearly_over_the_rows():
    values = {"output": "o", "data": "d", "tasks": "t", "rows": 100}
    config = TrainConfig.of({**values, "lexical_weight": [0.3, 0.1]})
    assert [config.weigh_lexical(cursor) for cursor in (0, 50, 100, 150)] == pytest.approx([0.3, 0.2, 0.1, 0.1])
    assert TrainConfig.of({**values, "lexical_weight": "2e-1"}).weigh_lexical(7) == 0.2
    assert not TrainConfig.of(values).supervised and TrainConfig.of({**values, "lexical_weight": [0, 1]}).supervised
    assert TrainConfig.of(config.to_dict()) == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lexical_weight": -1}, "lexical_weight is -1.0; it must be at least 0"),
        ({"lexical_weight": [0.1, float("inf")]}, "lexical_weight is .*; it must be at least 0 and finite"),
        ({"lexical_weight": [0.1]}, "lexical_weight is"),
        ({"lexical_words": "own"}, "lexical_words is 'own'; it must be both or other"),
        ({"lexical_temperature": 0}, "lexical_temperature is 0.0; it must be above 0"),
        ({"lexical_weight": 0.1, "pooling": "last"}, "pooling 'last' has none"),
    ],
)
def test_a_bad_config_is_refused(change, message):
    with pytest.raises(InputError, match=message):
        TrainConfig.of({"output": "o", "data": "d", "tasks": "t", "rows": 1, **change})


def test_a_run_writes_a_checkpoint_and_logs_the_loss(tmp_path):
    folder = train(TrainConfig.of({**inputs(tmp_path), "rows": 12, "lexical_weight": 0.1}))
    log = read_log(folder.parent)
    assert all(record["lexical"] > 0 and record["lexical_skipped"] >= 0 for record in log)
    assert len(ROWS) == 30 and (folder / "adapter_model.safetensors").exists()
