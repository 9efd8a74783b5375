"""`teacher_loss` against its formula, and training beside a tiny Sentence Transformers model."""

import json
import math

import pytest
import torch

from gircse_rag.errors import InputError
from gircse_rag.training.config import TrainConfig
from gircse_rag.training.data import read_tasks
from gircse_rag.training.run import train
from gircse_rag.training.teacher import Teacher, teacher_loss
from tests.unit.training.test_losses import states, unit
from tests.unit.training.test_trainer import ROWS, inputs, read_log


def transcription(queries, passages, cosines, tau, teacher_tau):
    def log_softmax(scores):
        top = max(scores)
        total = top + math.log(sum(math.exp(s - top) for s in scores))
        return [s - total for s in scores]

    queries, passages, divergences = queries.tolist(), passages.tolist(), []
    for k in range(1, len(queries[0]) + 1):
        for query, row in zip(queries, cosines.tolist(), strict=True):
            z = unit(query[:k])
            scores = [sum(a * b for a, b in zip(z, unit(p[:k]), strict=True)) / tau for p in passages]
            wanted, found = log_softmax([c / teacher_tau for c in row]), log_softmax(scores)
            divergences.append(sum(math.exp(w) * (w - f) for w, f in zip(wanted, found, strict=True)))
    return sum(divergences) / len(divergences)


def cosines(seed=0):
    return 2 * torch.rand(4, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) - 1


@pytest.mark.parametrize(("tau", "teacher_tau"), [(0.02, 0.025), (0.5, 0.1)])
def test_equals_the_transcription(tau, teacher_tau):
    for seed in range(3):
        q, p = states(seed=seed)
        found = teacher_loss(q, p, cosines(seed), temperature=tau, teacher_temperature=teacher_tau)
        assert found.item() == pytest.approx(transcription(q, p, cosines(seed), tau, teacher_tau), rel=1e-9)


def test_gradients_and_the_minimum():
    q, p = states(seed=3)
    q.requires_grad_(), p.requires_grad_()
    options = {"temperature": 0.3, "teacher_temperature": 0.2}
    assert torch.autograd.gradcheck(lambda a, b: teacher_loss(a, b, cosines(), **options), (q, p))
    last = torch.nn.functional.normalize(q[:, 0], dim=-1) @ torch.nn.functional.normalize(p[:, 0], dim=-1).T
    agreed = teacher_loss(q[:, :1], p[:, :1], last.detach(), temperature=0.3, teacher_temperature=0.3)
    assert agreed.item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda q, p, s: ((q, p, s[:3]), {}), "4 queries and 8 passages need one each"),
        (lambda q, p, s: ((q, p, s), {"temperature": 0}), "both must be positive"),
        (lambda q, p, s: ((q, p, s), {"teacher_temperature": -1}), "both must be positive"),
    ],
)
def test_mismatched_arguments_are_refused(change, message):
    arguments, options = change(*states(), cosines())
    with pytest.raises(InputError, match=message):
        teacher_loss(*arguments, **options)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Tiny sentence encoders: one that spells English words, one whose vocabulary is Greek."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from transformers import BertConfig, BertModel, BertTokenizerFast

    made = {}
    for name, letters in (("english", "abcdefghijklmnopqrstuvwxyz0123456789'"), ("greek", "αβγδεζηθικλμνξοπρστυφχψω")):
        base = tmp_path_factory.mktemp(name)
        vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
        (base / "vocab.txt").write_text("\n".join(vocabulary), encoding="utf-8")
        BertTokenizerFast(vocab=str(base / "vocab.txt"), model_max_length=64).save_pretrained(base)
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=len(vocabulary), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
        )
        BertModel(config).save_pretrained(base)
        transformer = Transformer(str(base))
        made[name] = base / "encoder"
        SentenceTransformer(modules=[transformer, Pooling(16)], device="cpu").save(str(made[name]))
    return made


def test_a_teacher_is_distilled_and_tasks_can_be_excepted(tmp_path, folders):
    values = {**inputs(tmp_path), "teacher": str(folders["english"]), "rows": 24, "learning_rate": 0.003}
    tasks = json.loads((tmp_path / "tasks.json").read_text())
    tasks["same"]["teacher"] = False
    (tmp_path / "tasks.json").write_text(json.dumps(tasks))
    assert [task.teacher for task in read_tasks(tmp_path / "tasks.json").values()] == [True, False]
    train(TrainConfig.of(values))
    log = read_log(tmp_path / "out")
    judged = [record for record in log if "teacher" in record]
    assert {record["task"] for record in judged} == {"find"} and {record["task"] for record in log} == {"find", "same"}
    assert all(record["teacher"] > 0 for record in judged)


@pytest.mark.slow
def test_distillation_draws_the_student_to_the_teacher(tmp_path, folders):
    last = {}
    for weight in (0.0, 5.0):
        out = {"output": str(tmp_path / str(weight)), "teacher": str(folders["english"]), "teacher_weight": weight}
        options = {"rows": 150, "learning_rate": 0.003, "temperature": 0.1, "teacher_temperature": 0.1}
        train(TrainConfig.of({**inputs(tmp_path), **out, **options, "save_rows": 300}))
        losses = [record["teacher"] for record in read_log(tmp_path / str(weight))]
        last[weight] = sum(losses[-5:])
    assert last[5.0] < 0.8 * last[0.0]


def test_similarities_are_those_of_queries_and_passages(folders):
    from sentence_transformers import SentenceTransformer

    from tests.unit.training.test_lexical import make_batch

    rows = ROWS[1:4]
    found = Teacher(str(folders["english"]), ROWS, torch.device("cpu")).similarities(make_batch(rows))
    encoder = SentenceTransformer(str(folders["english"]), device="cpu")
    passages = [row.positive for row in rows] + [row.negative for row in rows]
    expected = encoder.similarity(encoder.encode([row.query for row in rows]), encoder.encode(passages))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_what_is_no_teacher_is_refused(tmp_path, folders):
    with pytest.raises(InputError, match="which is not a folder"):
        Teacher(str(tmp_path / "none"), ROWS, torch.device("cpu"))
    with pytest.raises(InputError, match="holds no Sentence Transformers model"):
        Teacher(str(tmp_path), ROWS, torch.device("cpu"))
    with pytest.raises(InputError, match=r"does not know 100% of the tokens .* a teacher of their language"):
        Teacher(str(folders["greek"]), ROWS, torch.device("cpu"))
